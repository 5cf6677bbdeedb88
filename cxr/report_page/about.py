"""What a report says about the run, its model, the stack's settings and the cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from classifier.model import Model
from runs.run import Run

from cxr.planning import capacity
from cxr.runs import RunStatus
from cxr.words import duration, money
from stacks.config import Config, ConfigError

Facts = list[tuple[str, str]]


def about(run: Run, model: Model | None, config: Config | None) -> dict[str, Any]:
    """Run, model and settings as facts; the last two None if they are not known."""
    times: Facts = [
        ("Created", _time(run.created_at)),
        ("Listed", _time(run.listed_at)),
        ("Completed", _time(run.completed_at)),
    ]
    facts: Facts = [
        ("Name", run.run_id),
        ("Images", source(run)),
        *(times if run.created_at else ()),  # a file records none
        ("Model", run.model),
        ("SHA-256 of the model", run.model_sha256 or "not given"),
    ]
    defaults = Config().run_settings()
    return {
        "run": facts,
        "model": _card(model) if model else None,
        "settings": config
        and [
            (name, f"{value}{'' if value == defaults[name] else ' (not the default)'}")
            for name, value in config.run_settings().items()
        ],
        "settings_of": "when the run was created" if run.settings else "when this report was written",
    }


def source(run: Run) -> str:
    """Where the images of the run are from, in words."""
    kind, value = run.source.get("kind", "unknown"), run.source.get("value", "")
    what = {
        "Prefix": f"all images under {value}",
        "IndexKey": f"the index {value}",
        "Keys": "a list of keys",
        "Direct": "direct jobs",
    }.get(kind, f"{kind} {value}")
    return f"{what}, the first {int(run.source['job_count']):,}" if "job_count" in run.source else what


def config_of(run: Run, settings: Mapping[str, Any]) -> Config | None:
    """The settings that the run records, else these. None if there are none or this version refuses them."""
    known = run.settings or settings
    try:
        return Config.from_settings(known) if known else None
    except ConfigError:
        return None


def plan_of(run: RunStatus, config: Config | None, keys: Sequence[str]) -> capacity.Plan | None:
    """The plan for the run with these settings; None without settings, service time or images."""
    measured = capacity.read_json(capacity.SERVICE_TIMES)
    rate = measured["images_per_second"].get(run.model.rpartition(":")[0])
    images = run.expected or len(keys)
    if config is None or rate is None or not images:
        return None
    indexed = run.source.get("kind") == "IndexKey"
    workload = capacity.Workload(
        images=images,
        images_per_second=rate,
        cold_start_seconds=measured["cold_start_seconds"],
        keys_per_second=measured["keys_per_second"]["index" if indexed else "listing"],
        key_bytes=max(1, round(sum(map(len, keys)) / max(1, len(keys)))),
        indexed=indexed,
    )
    return capacity.plan(workload, config, capacity.read_json(capacity.PRICES)["prices"])


def cost(plan: capacity.Plan) -> dict[str, Any]:
    """The bill as `cxr plan` estimates it."""
    priced = capacity.read_json(capacity.PRICES)
    return {
        "lines": [
            {
                "item": line.item,
                "quantity": _quantity(line.quantity),
                "unit": line.unit,
                "dollars": f"{line.dollars:,.4f}",
            }
            for line in plan.lines
        ],
        "total": f"{plan.dollars:,.4f}",
        "per_1000": money(plan.dollars / plan.workload.images * 1000),
        "idle": money(plan.idle_dollars),
        "seconds": duration(plan.seconds),
        "bottleneck": plan.bottleneck,
        "note": f"An estimate from the settings, not from a bill. Prices of {priced['date']}, "
        f"{priced['region']}. {priced['note']}",
    }


def _card(model: Model) -> dict[str, Any]:
    """What model.json says."""
    card = model.card
    facts: Facts = [
        ("Name", model.name),
        ("Architecture", str(card.get("architecture", "not given"))),
        ("Intended use", str(card.get("intended_use", "not given"))),
        ("Labels", ", ".join(f"{label} from {limit}" for label, limit in model.thresholds.items())),
        ("Licence", str(card.get("licence", "not given"))),
        ("Attribution", str(card.get("attribution", "not given"))),
    ]
    training = card.get("training", {})
    trained = training if isinstance(training, dict) else {"training": training}
    metrics = card.get("metrics", {})
    collections = metrics.get("collections", {}) if isinstance(metrics, dict) else {}
    return {
        "facts": facts,
        "limitations": [str(line) for line in card.get("limitations", [])],
        "training": [(name.replace("_", " "), _in_words(value)) for name, value in trained.items()],
        "worth": [
            [
                name,
                *(f"{one[field]:,}" for field in ("images", "patients")),
                f"{auc['value']:.3f}",
                " to ".join(f"{limit:,.3f}" for limit in auc["ci95"]),
            ]
            for name, one in collections.items()
            if (auc := one.get("auc"))
        ],
        "worth_note": f"Scores {metrics['scores']}. Intervals: {metrics['interval']}." if collections else "",
    }


def _in_words(value: Any) -> str:
    """A value of model.json as text."""
    if isinstance(value, dict):
        return ", ".join(f"{name.replace('_', ' ')} {_in_words(one)}" for name, one in value.items())
    if isinstance(value, list):
        return "; ".join(map(_in_words, value))
    return str(value)


def _time(moment: datetime | None) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC") if moment else "not yet"


def _quantity(value: float) -> str:
    if value < 0.001:
        return "< 0.001"
    return f"{value:,.0f}" if value >= 10 else f"{value:.3g}"
