"""The function that starts a run: S3 keys in, jobs on the Kinesis stream out."""
