"""The CDK app: context -> Config -> InferenceStack. It makes no AWS call; run it by `npx cdk synth`."""

import sys

from aws_cdk import App

from stacks.config import Config, ConfigError
from stacks.inference_stack import InferenceStack

app = App()
try:
    InferenceStack(app, "ChestXray", config=Config.from_context(app.node.get_all_context()))
except ConfigError as error:
    sys.exit(f"Error: {error}")
app.synth()
