"""What proves that no image is lost and none counted twice: random faults, faults on the wire, bad images."""
