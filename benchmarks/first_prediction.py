"""One image scored, with nothing imported that its way does not need: `python -m ... ENGINE MODEL IMAGE`."""

import json
import os
import sys
from pathlib import Path

from benchmarks.memory import peak_mb


def score(engine: str, model: Path, data: bytes) -> list[float]:
    if engine == "openvino":
        from benchmarks.engines import OpenVino

        return OpenVino(model, 1).score([data])
    if engine == "ours":
        os.environ["MODEL_DIR"] = str(model)
        from classifier.handler import load_model  # and all else that Lambda loads, boto3 too

        bundle = load_model()
        return [float(score) for score in bundle.score([bundle.prepare(data)[0]])[0].values()]
    from benchmarks.original import Original

    return Original(model, 1).score([data])


if __name__ == "__main__":
    scores = score(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]).read_bytes())
    print(json.dumps({"scores": scores, "peak_mb": peak_mb()}))
