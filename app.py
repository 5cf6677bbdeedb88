"""The CDK app: context -> Config -> InferenceStack. `npx cdk synth` runs it; it makes no AWS call."""

import sys

from aws_cdk import App, Validations
from cdk_nag import AwsSolutionsChecks

from stacks.config import Config, ConfigError, stack_name
from stacks.inference_stack import InferenceStack

app = App()
Validations.of(app).add_plugins(AwsSolutionsChecks(app))  # a finding stops synth and deploy
try:
    context = app.node.get_all_context()
    InferenceStack(app, stack_name(context), config=Config.from_context(context))
except ConfigError as error:
    sys.exit(f"Error: {error}")
app.synth()
