"""The stack as the CDK synthesizes it, once in a process for the same settings: that takes some seconds."""

import atexit
import json
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import NamedTuple

from aws_cdk import App
from aws_cdk.assertions import Template
from support import ROOT

from stacks.config import Config
from stacks.inference_stack import InferenceStack


class Synthesized(NamedTuple):
    template: Template
    folder: Path  # the cloud assembly, with its assets


@cache
def synth(*settings: str) -> Synthesized:
    """The stack with settings such as "shards=3"."""
    folder = Path(tempfile.mkdtemp(prefix="cdk.out-"))
    atexit.register(shutil.rmtree, folder)
    return synthesize(folder, *settings)


def synthesize(folder: Path, *settings: str, name: str = "ChestXray") -> Synthesized:
    """The same, made anew."""
    flags = json.loads((ROOT / "cdk.json").read_text())["context"]
    # The CDK's own rules take seconds. `cdk synth` in test_stack.py has them on.
    app = App(context=flags, outdir=str(folder), builtin_cloud_formation_validation=False)
    config = Config.from_context(dict(setting.split("=") for setting in settings))
    return Synthesized(Template.from_stack(InferenceStack(app, name, config=config)), folder)
