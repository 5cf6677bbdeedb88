"""Containers of the classifier's image never outlive local AWS."""

import signal
import subprocess
import sys

import pytest
from support import wait_for

SCRIPT = """
import signal, sys, time
from cxr.local_aws.function_host import PROXY_URL
from cxr.local_aws.local_aws import LocalAws

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
with LocalAws(image=sys.argv[1]) as aws:
    functions = aws.client("lambda")
    functions.create_function(
        FunctionName="classifier",
        PackageType="Image",
        Code={"ImageUri": sys.argv[1]},
        Role="arn:aws:iam::000000000000:role/classifier",
        Timeout=60,
        Environment={"Variables": {"BUCKET_NAME": "images", "TABLE_NAME": "predictions"}},
    )
    while PROXY_URL not in str(functions.get_function_configuration(FunctionName="classifier")):
        time.sleep(0.1)
    print(aws.logs.name, flush=True)
    functions.invoke(FunctionName="classifier", Payload="{}")
    print("answered", flush=True)
    signal.pause()
"""


def containers(owner: str, *options: str) -> str:
    """The ids of an owner's containers, whatever their state."""
    command = ["docker", "ps", "--all", "--quiet", f"--filter=label=cxr-local={owner}", *options]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.mark.container
@pytest.mark.parametrize("moment", ["starting", "idle"])
def test_an_interrupt_leaves_no_container(moment: str, pytestconfig: pytest.Config) -> None:
    command = [sys.executable, "-c", SCRIPT, pytestconfig.getoption("--image")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as started:
        assert started.stdout
        owner = started.stdout.readline().strip()
        wait_for(lambda: containers(owner) != "", "a container")
        if moment == "idle":
            assert started.stdout.readline() == "answered\n"
        started.send_signal(signal.SIGINT)
        assert started.wait(timeout=30) == -signal.SIGINT
    assert containers(owner) == ""
