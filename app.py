"""The CDK app: context -> Config -> InferenceStack. It makes no AWS call; run it by `npx cdk synth`."""

import sys

from aws_cdk import App, Validations
from cdk_nag import AwsSolutionsChecks

from stacks.config import Config, ConfigError
from stacks.inference_stack import InferenceStack

app = App()
Validations.of(app).add_plugins(AwsSolutionsChecks(app))  # a finding stops synth, and so a deployment
try:
    InferenceStack(app, "ChestXray", config=Config.from_context(app.node.get_all_context()))
except ConfigError as error:
    sys.exit(f"Error: {error}")
app.synth()
