"""Methods by name: each is a setting of the step's switches. ``docs/methods.md`` gives the source of each."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from edge_runtime.errors import ConfigError


@dataclass(frozen=True)
class Method:
    """A method of the literature, or ours.

    Attributes:
        fixed: fields of ``[step]`` that define the method.
        defaults: fields of ``[step]`` that a job may override.
    """

    fixed: dict[str, Any] = field(default_factory=dict)
    defaults: dict[str, Any] = field(default_factory=dict)


# With one back direction per front direction, every direction perturbs the whole network.
_WHOLE = {"variant": "nested", "back_perturbations": 1}

METHODS: dict[str, Method] = {
    "spzo": Method(),
    "spzo-clean": Method({"variant": "clean"}),
    "mezo": Method({**_WHOLE, "difference": "central"}, {"normalize": "none"}),
    "decomfl": Method(
        {**_WHOLE, "shared_directions": True},
        {"difference": "forward", "front_perturbations": 5, "normalize": "none", "eps": 1e-3},
    ),
    "fedkseed": Method({**_WHOLE, "difference": "central"}, {"seed_pool": 4096, "normalize": "none"}),
    "fzoo": Method({**_WHOLE, "difference": "forward", "normalize": "std"}, {"front_perturbations": 8}),
    "spzo-shared": Method({"variant": "nested", "shared_directions": True}),
    "spzo-fzoo": Method({"variant": "nested", "difference": "forward", "normalize": "std"}),
}


def expand(method: object, step: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of ``[step]``: a method's, and a job's own ones.

    Raises:
        ConfigError: there is no such method, or a field contradicts what defines it.
    """
    if not isinstance(method, str) or method not in METHODS:
        raise ConfigError(f"unknown method {method!r}", f"methods are: {', '.join(METHODS)}")
    chosen = METHODS[method]
    for name, value in chosen.fixed.items():
        if step.get(name, value) != value:
            raise ConfigError(
                f"method {method} has {name} = {value!r}, the job's [step] says {step[name]!r}",
                f"leave {name} out, or choose another method",
            )
    if method == "fedkseed" and step.get("seed_pool", 1) is None:
        raise ConfigError("method fedkseed needs a seed_pool", "leave it out for the default")
    return {**chosen.defaults, **step, **chosen.fixed}
