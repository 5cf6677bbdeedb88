"""The CDK app: what is deployed. Nothing in here runs in AWS."""
