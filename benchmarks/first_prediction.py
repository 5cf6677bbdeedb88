"""Scores one image and imports only what its engine needs, for benchmarks.cold_start.

`python -m benchmarks.first_prediction ENGINE MODEL IMAGE` prints its scores and peak memory as JSON.
"""

import json
import os
import sys
from pathlib import Path

from benchmarks.memory import peak_mb


def score(engine: str, model: Path, data: bytes) -> list[float]:
    if engine == "openvino":
        from benchmarks.engines import OpenVino

        return OpenVino(model, 1).score([data])
    if engine == "classifier":
        os.environ["MODEL_DIR"] = str(model)
        from classifier.handler import load_model  # imports all that the Lambda function imports, also boto3

        bundle = load_model()
        return [float(score) for score in bundle.score([bundle.prepare(data)[0]])[0].values()]
    from benchmarks.original import Original

    return Original(model, 1).score([data])


if __name__ == "__main__":
    scores = score(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]).read_bytes())
    print(json.dumps({"scores": scores, "peak_mb": peak_mb()}))
