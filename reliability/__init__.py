"""Tests that no image is lost or counted twice: random faults, faults on the wire, fuzzing, bad images."""
