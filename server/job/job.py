"""``job.toml``: the configuration of one fine-tuning run, and the checks of its fields."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

from edge_runtime.bundle.levels import (  # noqa: TC001 msgspec reads the types of a job at run time
    Level,
    LevelKind,
    TopLevel,
)
from edge_runtime.data.config import RowFormat
from edge_runtime.errors import ConfigError, wall
from edge_runtime.files.nearest import with_nearest
from edge_runtime.files.toml_file import read_toml
from edge_runtime.protocol.layer_dropout import Stld
from edge_runtime.protocol.messages import MAX_PAYLOAD_BYTES
from edge_runtime.protocol.privacy import Privacy
from edge_runtime.protocol.step_rule import MAX_PERTURBATIONS, StepRule, check_rule, rule_with
from edge_runtime.values import Name
from server.bandit.options import BanditOptions
from server.job.methods import expand
from server.job.robust import Robust, check_robust
from server.job.schedule import FROZEN_FRONT, TRAIN_LATER, spread
from server.job.selector import EVERYONE, parse_selector

if TYPE_CHECKING:
    from pathlib import Path

_REPORT_OVERHEAD_BYTES = 512
"""Upper bound of a report's size without its scalars."""
FEWEST_BACK_PERTURBATIONS = 2
"""Smallest P2 from which V2 can be estimated: one back direction shows no spread within its front direction."""
BackPerturbations = Annotated[int, msgspec.Meta(ge=1, le=MAX_PERTURBATIONS)]
Front = Annotated[str, msgspec.Meta(pattern=f"^(train|{FROZEN_FRONT}|{TRAIN_LATER}[0-9]{{1,7}})$")]


class JobPrivacy(Privacy, frozen=True, forbid_unknown_fields=True):
    """Differential privacy of all rows of a device together; see edge_runtime/protocol/privacy.py.

    Attributes:
        delta: the δ for which the job's summary reports ε.
    """

    delta: Annotated[float, msgspec.Meta(gt=0, lt=1)] = 1e-5


class Adaptive(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the server may choose anew each round; see planning.adaptive.next_plan.

    Attributes:
        back_perturbations: whether it may choose P2.
        split: whether it may choose the split, among all of the bundle.
        most_back_perturbations: the largest P2 that it may choose.
    """

    back_perturbations: bool = True
    split: bool = False
    most_back_perturbations: Annotated[int, msgspec.Meta(ge=FEWEST_BACK_PERTURBATIONS, le=MAX_PERTURBATIONS)] = 32


class JobBandit(BanditOptions, frozen=True, forbid_unknown_fields=True):
    """The bandit, which chooses each device's arm by what it has learned; BanditOptions has the other fields.

    Attributes:
        back_perturbations: values of P2 that it may choose for forward-only devices.
        splits: whether it may choose the round's split, among all of the bundle.
        most_power_w: power limit in watts: arms that took more by the device's profile are left out; None: no limit.
        deadline_factor: the round closes after this factor × its expected duration, or at the deadline, whichever comes
            first; None: at the deadline.
    """

    back_perturbations: Annotated[list[BackPerturbations], msgspec.Meta(min_length=1, max_length=32)] = msgspec.field(
        default_factory=lambda: [2, 4, 8, 16]
    )
    splits: bool = False
    most_power_w: Annotated[float, msgspec.Meta(gt=0)] | None = None
    deadline_factor: Annotated[float, msgspec.Meta(ge=1.5)] | None = 3.0


class JobStld(Stld, frozen=True, forbid_unknown_fields=True):
    """Backpropagation, with layer dropout (STLD, stochastic transformer layer dropout) or of the last layers alone.

    Stld has the other fields.

    Attributes:
        kinds: kinds of levels that may be used: ``drop``, layer dropout, or ``top``, of which all layers run and the
            last ones are trained.
        levels: levels that may be used, whatever their kind: numbers of active layers, or ``top:k``; None: all of the
            bundle that are of these kinds.
        device_levels: level of a device by its name, 0: forward-only; other devices get the largest level that fits
            their memory.
        forward_only: whether devices that cannot backpropagate take part with forward passes.
        forward_from: the round, from 0, from which they do: before it, backprop devices train alone.
        merging: what weighs the two kinds of devices: ``examples``, their numbers of rows; ``noise``, their noise too
            (docs/hybrid.md).
    """

    kinds: Annotated[list[LevelKind], msgspec.Meta(min_length=1, max_length=2)] = msgspec.field(
        default_factory=lambda: ["drop"]
    )
    levels: list[Level] | None = None
    device_levels: dict[str, Annotated[int, msgspec.Meta(ge=0)] | TopLevel] = msgspec.field(default_factory=dict)
    forward_only: bool = True
    forward_from: Annotated[int, msgspec.Meta(ge=0)] = 0
    merging: Literal["examples", "noise"] = "examples"


class Job(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A fine-tuning run.

    Attributes:
        name: name of the job; ledger, adapters and logs carry it.
        eval_file: held-out rows for the evaluation of adapters, of any kind that [data] of edge.toml can have; a path
            relative to job.toml. They stay on the server.
        eval_data: how they are written, the settings of [data] in edge.toml; None: by its defaults.
        rounds: number of rounds.
        steps: local steps of a device per round.
        batch_size: rows per step.
        split: index of the back block's first layer; None: the bundle's last split.
        seed: seed of every random choice.
        devices: which devices it is for: ``all``, or names and tags, ``tag:kitchen, pi-3``; see selector.py.
        cohort: reports per round; 0: one from every device that is online.
        over_selection: the round is offered to cohort × over_selection devices, and ends with ``cohort`` reports.
        min_reports: with fewer reports at the deadline, the attempt is abandoned.
        min_devices: devices that must be online before the first round, and that the first one after a restart of the
            server waits for, for ``accept_s`` seconds; 0: ``min_reports``.
        deadline_s: seconds from the offer to the last report that counts.
        accept_s: seconds that a device may take to accept a plan; a round does not wait longer for one that is silent.
        max_attempts: attempts at one round before the job fails.
        eval_every: rounds between two evaluations; the last adapter is always evaluated.
        weighting: devices count by their number of rows (``examples``), or equally (``uniform``).
        schedule: the learning rate stays (``constant``), or falls in equal steps towards 0 at the end (``linear``).
        train: what the bundle must train, ``lora`` or ``full``; None: either.
        method: name of the method whose settings [step] starts from; see methods.METHODS.
        server_momentum: share of a round's movement that the next round adds again.
        step: how a step perturbs and updates.
        stld: backpropagation with layer dropout on the devices that can; None: all devices are forward-only.
        adaptive: what the server may choose anew each round; None: nothing.
        privacy: how devices clip and noise their scalars; None: they do not.
        bandit: how each device's level, or split and P2, is chosen; None: by free memory and [adaptive].
        robust: what is done about devices that send wrong contributions; None: no more than checking each report.
        front: whether the front block is trained: ``train``; ``frozen``: never, so that each row's activation is
            computed once and kept; ``train-after:N``: frozen in the first N rounds, and then trained by forward-only
            devices; None: ``train``. Where it is not ``train``, backprop devices train layers behind the split alone.
    """

    name: Name
    eval_file: str
    eval_data: RowFormat | None = None
    rounds: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 20
    steps: Annotated[int, msgspec.Meta(ge=1, le=4096)] = 4
    batch_size: Annotated[int, msgspec.Meta(ge=1, le=4096)] = 8
    split: int | None = None
    seed: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] = 0
    devices: str = EVERYONE
    cohort: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 0
    over_selection: Annotated[float, msgspec.Meta(ge=1, le=10)] = 1.0
    min_reports: Annotated[int, msgspec.Meta(ge=1)] = 1
    min_devices: Annotated[int, msgspec.Meta(ge=0)] = 0
    deadline_s: Annotated[float, msgspec.Meta(gt=0)] = 600.0
    accept_s: Annotated[float, msgspec.Meta(gt=0)] = 20.0
    max_attempts: Annotated[int, msgspec.Meta(ge=1)] = 5
    eval_every: Annotated[int, msgspec.Meta(ge=1)] = 1
    weighting: Literal["examples", "uniform"] = "examples"
    schedule: Literal["constant", "linear"] = "linear"
    train: Literal["lora", "full"] | None = None
    method: str = "spzo"
    server_momentum: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.0
    step: StepRule = StepRule()
    stld: JobStld | None = None
    adaptive: Adaptive | None = None
    privacy: JobPrivacy | None = None
    bandit: JobBandit | None = None
    robust: Robust | None = None
    front: Front | None = None

    @property
    def frozen_rounds(self) -> int:
        """Number of rounds, from the first one, in which the front is frozen; ``rounds`` where it always is."""
        if self.front is not None and self.front.startswith(TRAIN_LATER):
            return min(int(self.front.removeprefix(TRAIN_LATER)), self.rounds)
        return self.rounds if self.front == FROZEN_FRONT else 0

    def counted_examples(self, examples: int) -> int:
        """Return the number of rows for which a device counts that says it has ``examples``."""
        return examples if self.robust is None else self.robust.counted_examples(examples)

    @property
    def devices_to_start(self) -> int:
        """Devices that must be online before the first round."""
        return self.min_devices or self.min_reports

    def rule_of(self, round_index: int) -> StepRule:
        """Return the rule of a forward-only step in a round, with the schedule's learning rate and front."""
        rate = self.step.learning_rate * self._rate_left(round_index)
        front: Literal["frozen"] | msgspec.UnsetType = "frozen" if round_index < self.frozen_rounds else msgspec.UNSET
        return msgspec.structs.replace(self.step, learning_rate=rate, front=front)

    def stld_of(self, round_index: int) -> Stld | None:
        """Return the backprop devices' settings in a round, with the schedule's learning rate; None: no [stld]."""
        if self.stld is None:
            return None
        fields = {name: getattr(self.stld, name) for name in Stld.__struct_fields__}
        return Stld(**fields | {"learning_rate": self.stld.learning_rate * self._rate_left(round_index)})

    def _rate_left(self, round_index: int) -> float:
        return 1.0 if self.schedule == "constant" else (self.rounds - round_index) / self.rounds


def read_job(path: Path) -> Job:
    """Read ``job.toml``; ``eval_file`` becomes an absolute path.

    Raises:
        ConfigError: the file is missing or not TOML, a field is unknown or wrong, or two fields contradict each other.
    """
    return job_of(read_job_table(path))


def read_job_table(path: Path) -> dict[str, Any]:
    """Read the content of ``job.toml``, as it was written, and check it; ``eval_file`` becomes an absolute path.

    Raises:
        ConfigError: as read_job.
    """
    written: dict[str, Any] = {}

    def prepared(table: dict[str, Any]) -> dict[str, Any]:
        written.update(table)
        return _prepared(table)

    job = read_toml(path, Job, prepared)
    _check(str(path), job)
    return written | {"eval_file": str(path.resolve().parent / job.eval_file)}


def job_of(table: dict[str, Any]) -> Job:
    """Read a job from the content of job.toml, whose ``eval_file`` is an absolute path.

    Raises:
        ConfigError: a field is unknown or wrong, or two fields contradict each other.
    """
    hint = "correct it; docs/configuration.md lists every field"
    with wall(lambda cause: ConfigError(f"the job: {with_nearest(cause, Job)}", hint)):
        job = msgspec.convert(_prepared(table), Job)
    _check("the job", job)
    return job


def _check(path: str, job: Job) -> None:
    """Check that no two fields contradict each other; ``path`` is where the job is from."""
    if job.cohort and job.min_reports > job.cohort:
        raise ConfigError(
            f"{path}: min_reports = {job.min_reports} can never be reached with cohort = {job.cohort}",
            "lower min_reports, or raise cohort",
        )
    if job.adaptive is not None and (job.step.variant != "nested" or job.step.normalize == "std"):
        raise ConfigError(
            f'{path}: [adaptive] needs variant = "nested" and normalize "rms" or "none"',
            "leave [adaptive] out, or change [step]",
        )
    if job.bandit is not None:
        _check_bandit(path, job, job.bandit)
    report_bytes = largest_report_bytes(job)
    if report_bytes > MAX_PAYLOAD_BYTES * 3 // 4:
        raise ConfigError(
            f"{path}: a report would have {report_bytes} bytes, more than one message can carry",
            "lower steps or the number of perturbations",
        )
    if job.privacy is not None and job.weighting != "uniform":
        raise ConfigError(
            f'{path}: a private job needs weighting = "uniform": shares by rows would tell how many a device has',
            'set weighting = "uniform"',
        )
    if job.privacy is not None and job.stld is not None:
        raise ConfigError(
            f"{path}: [privacy] and [stld] exclude each other: a delta is not noised", "leave one of them out"
        )
    if job.step.keeps_moment and job.stld is not None:
        raise ConfigError(
            f"{path}: curvature and sign_momentum need rounds that every device can replay, and [stld] has others",
            "leave [stld] out, or leave curvature and sign_momentum out of [step]",
        )
    if job.robust is not None:
        check_robust(
            path,
            job.robust,
            job.step,
            weighting=job.weighting,
            min_reports=job.min_reports,
            backpropagates=job.stld is not None,
        )
    _check_rules(path, job, job.step)
    _check_front(path, job)
    parse_selector(job.devices)


def _check_front(path: str, job: Job) -> None:
    if job.step.front_is_frozen:
        raise ConfigError(
            f"{path}: whether the front is frozen is a setting of the job, not of its [step]",
            f'leave front out of [step], and write front = "{FROZEN_FRONT}" before the first table',
        )
    if not job.frozen_rounds:
        return
    if job.step.switches:
        raise ConfigError(
            f'{path}: front = "{job.front}" and {", ".join(job.step.switches)} exclude each other',
            "leave one of them out",
        )
    if (job.adaptive is not None and job.adaptive.split) or (job.bandit is not None and job.bandit.splits):
        raise ConfigError(
            f'{path}: front = "{job.front}" needs one split: what lies before it must not change from round to round',
            "leave split or splits = true out of [adaptive] or [bandit]",
        )
    _check_rules(path, job, job.rule_of(0))


def _check_rules(path: str, job: Job, rule: StepRule) -> None:
    """Check a rule of the job with its own P2, and with what [bandit] or, at the least, [adaptive] chooses instead."""
    check_rule(rule)
    chosen: list[int] = [] if job.bandit is None else job.bandit.back_perturbations
    if job.adaptive is not None and job.adaptive.back_perturbations:
        chosen = [FEWEST_BACK_PERTURBATIONS]
    for p2 in chosen:
        try:
            check_rule(rule_with(rule, p2))
        except ConfigError as error:
            chooser = "bandit" if job.adaptive is None else "adaptive"
            raise ConfigError(
                f"{path}: with back_perturbations = {p2}, which [{chooser}] may choose: {error.what}",
                f"{error.hint}; or leave the choice of back_perturbations out of [{chooser}]",
            ) from error


def _check_bandit(path: str, job: Job, bandit: JobBandit) -> None:
    if job.adaptive is not None:
        raise ConfigError(f"{path}: [bandit] and [adaptive] both choose P2 and split", "leave one of them out")
    if bandit.splits and bandit.policy != "thompson":
        raise ConfigError(f'{path}: splits = true needs policy = "thompson"', "leave splits out")
    shares = job.step.shared_directions or job.step.seed_pool is not None
    if shares and len(set(bandit.back_perturbations)) > 1:
        raise ConfigError(
            f"{path}: devices that share directions need the same P2",
            "give one back_perturbations in [bandit], or leave shared_directions and seed_pool out",
        )


def _prepared(table: dict[str, Any]) -> dict[str, Any]:
    """Replace [schedule] by its older spellings, and fill in what the job's method says of [step]."""
    table = spread(table)
    step = table.get("step", {})
    if not isinstance(step, dict):
        return table  # decoding checks the types next
    return {**table, "step": expand(table.get("method", "spzo"), step)}


def enough_reports(job: Job, offered: int) -> int:
    """Return the number of reports that end a round that was offered to ``offered`` devices."""
    return min(job.cohort, offered) if job.cohort else offered


def largest_report_bytes(job: Job) -> int:
    """Return an upper bound of the size of a forward-only round's report, with all that the job may choose."""
    most = job.step.back_perturbations
    if job.adaptive is not None:
        most = max(most, job.adaptive.most_back_perturbations)
    if job.bandit is not None:
        most = max(job.bandit.back_perturbations)
    rule = msgspec.structs.replace(job.step, back_perturbations=most)
    return 4 * job.steps * rule.scalars_per_step + _REPORT_OVERHEAD_BYTES
