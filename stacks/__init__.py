"""The CDK app: what is deployed. None of this code runs in AWS."""
