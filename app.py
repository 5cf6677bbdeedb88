"""The CDK app: settings -> Config -> InferenceStack. `npx cdk synth` runs it; it makes no AWS call."""

import sys
from pathlib import Path

from aws_cdk import App, Validations
from cdk_nag import AwsSolutionsChecks

from stacks.asset_modes import make_assets_readable
from stacks.config import ConfigError
from stacks.inference_stack import InferenceStack
from stacks.settings_file import read_settings

app = App()
Validations.of(app).add_plugins(AwsSolutionsChecks(app))  # a finding stops synth and deploy
try:
    name, config = read_settings(app.node.get_all_context())
    InferenceStack(app, name, config=config)
except ConfigError as error:
    sys.exit(f"Error: {error}")
make_assets_readable(Path(app.synth().directory))
