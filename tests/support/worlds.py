"""One adaptation in a cluster in memory, with its operator and its kubelet."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from dapt_contract.base import Contract
from dapt_contract.stage_file import StageFile
from dapt_operator.last_plans import LastPlans
from dapt_operator.launchers import LAUNCHERS, all_states
from dapt_operator.plan.decide import Plan, decide
from dapt_operator.plan.observed import observe
from dapt_operator.reconcile import reconcile
from dapt_operator.stage_run import HOLDER_KINDS
from dapt_operator.testing.cluster import MemoryCluster
from dapt_operator.testing.objects import Ends, OperatorKilledError, Script, Stays
from support.builders import adaptation, healthy, merged, profile


def failing(stage: str, how: Callable[[StageFile], Ends | None]) -> Script:
    """Healthy but for one stage; None from `how` is healthy too."""

    def script(run: StageFile) -> Ends | Stays:
        if run.run.stage != stage:
            return healthy(run)
        return how(run) or healthy(run)

    return script


def once(ends: Ends) -> Callable[[StageFile], Ends | None]:
    return lambda run: ends if run.run.try_number == 1 else None


class World:
    """Shorthand for scenarios: `reconcile` does so once, `live` until nothing happens any more."""

    def __init__(
        self,
        spec: dict[str, Any] | None = None,
        offered: dict[str, Any] | None = None,
        *,
        graceful: bool = False,
    ) -> None:
        self.cluster = MemoryCluster()
        self.cluster.graceful = graceful
        self.spec = spec or {}
        """What was laid over the builder's spec."""
        self.cluster.add_profile(profile(**(offered or {})))
        self.key = self.cluster.add(adaptation(**self.spec))
        self.runs: list[StageFile] = []
        self.plans: list[Plan] = []
        self.last_plans = LastPlans()
        self.instance = ""
        self.script: Script | None = None
        """What this world's pods do, for tests that share one loop over several worlds."""

    def reconcile(self) -> Plan:
        """Reconcile once."""
        try:
            plan = reconcile(
                self.cluster, self.key, LAUNCHERS, instance=self.instance, last_plans=self.last_plans
            )
        except OperatorKilledError:
            self._note_runs()
            raise
        self.plans.append(plan)
        if any(manifest["kind"] in ("Job", "JobSet") for manifest in plan.apply):
            self._note_runs()
        return plan

    def _note_runs(self) -> None:
        seen = {run.run.key for run in self.runs}
        self.runs += [stage for stage in self.cluster.stage_files(self.key) if stage.run.key not in seen]

    def live_until_interrupted(self, stage: str) -> None:
        """Live until the operator dies right after it has created the first run of a stage, with nothing stored."""
        for _ in range(200):
            plan = self._next_plan()
            kinds = [
                job["metadata"]["labels"]["dapt.dev/stage"]
                for job in plan.apply
                if job["kind"] in HOLDER_KINDS
            ]
            if kinds == [stage]:
                num_writes = len(plan.must_exist) + len(plan.apply) + int(plan.needs_signing_secret)
                is_key_first = plan.needs_signing_secret and not plan.starts_before_key
                if is_key_first and not self.cluster.objects(self.key, "Secret"):
                    num_writes += 2  # the status with the digest of the key, and the Secret
                self.cluster.crash_at, self.cluster.crash_after = (
                    len(self.cluster.verbs) + num_writes - 1,
                    True,
                )
                self.crashing_reconcile()
                return
            if self.reconcile().is_empty:
                self.cluster.run_pods(self.key, healthy)
        raise AssertionError(f"{stage} is never created")

    def _next_plan(self) -> Plan:
        """What the next reconcile will do."""
        raw = self.cluster.observe(self.key)
        assert raw.resource is not None
        runs = all_states(raw.children, raw.now)
        observed = observe(raw.resource, raw.profile, runs, raw.now, contents=raw.contents)
        return decide(observed, LAUNCHERS["IndexedJob"])

    def crashing_reconcile(self) -> None:
        """A reconcile that is killed at the verb that the cluster was told."""
        with contextlib.suppress(OperatorKilledError):
            self.reconcile()

    def settle(self) -> None:
        """Reconcile until there is nothing to do."""
        for _ in range(20):
            if self.reconcile().is_empty:
                return
        raise AssertionError("planning does not come to rest")

    def live(self, script: Script = healthy, until: Callable[[World], bool] | None = None) -> None:
        """Reconcile and run pods until neither has anything to do, or until `until` holds."""
        for _ in range(200):
            self.settle()
            if until is not None and until(self):
                return
            if self.cluster.run_pods(self.key, script):
                continue
            wait = self.plans[-1].requeue_after
            if wait is None or self.cluster.live_jobs(self.key):
                return
            self.cluster.advance(wait)
        raise AssertionError("this life does not end")

    def live_until(self, stage: str, script: Script = healthy) -> None:
        """Until a run of this stage lives."""
        self.live(script, lambda world: world.running == stage)
        assert self.running == stage

    @property
    def running(self) -> str | None:
        """The stage whose Job lives."""
        jobs = self.cluster.live_jobs(self.key)
        return jobs[0]["metadata"]["labels"]["dapt.dev/stage"] if jobs else None

    @property
    def alive(self) -> list[str]:
        """Every run that lives: its stage, with its candidate where it has one."""
        jobs = self.cluster.live_jobs(self.key)
        found = [self.cluster.stage_file(self.cluster.stored(self.key), job).run for job in jobs]
        return sorted(f"{run.stage} {run.candidate or ''}".strip() for run in found)

    @property
    def stages(self) -> list[str]:
        """Stages of all runs in the order of their creation."""
        return [run.run.stage for run in self.runs]

    @property
    def tries(self) -> list[str]:
        """All runs as `stage/try`."""
        return [f"{run.run.stage}/{run.run.try_number}" for run in self.runs]

    def config(self, kind: str) -> Contract:
        """Configuration of the newest run of a kind."""
        return [run for run in self.runs if run.kind == kind][-1].config

    def end(self, stage: str, ends: Ends, *, candidate: str | None = None) -> None:
        """The live runs of a stage end like this; others go on."""

        def script(run: StageFile) -> Ends | Stays:
            fits = run.run.stage == stage and candidate in (None, run.run.candidate)
            return ends if fits else Stays()

        assert self.cluster.run_pods(self.key, script)

    @property
    def job(self) -> dict[str, Any]:
        """The Job or JobSet that lives."""
        (found,) = self.cluster.live_jobs(self.key)
        return found

    @property
    def status(self) -> dict[str, Any]:
        """As stored."""
        return self.cluster.status(self.key)

    def condition(self, type_: str) -> tuple[str, str, str]:
        """Status, reason and message."""
        found = next(item for item in self.status["conditions"] if item["type"] == type_)
        return (found["status"], found["reason"], found.get("message", ""))

    def offer(self, **over: Any) -> None:
        """Lay changes over the profile, as an administrator does."""
        (old,) = self.cluster.profiles.values()
        self.cluster.add_profile(old | {"spec": merged(old["spec"], over)})

    def edit(self, **over: Any) -> None:
        """Lay changes over the spec, as a person does."""

        def change(spec: dict[str, Any]) -> None:
            changed = merged(spec, over)
            spec.clear()
            spec.update(changed)

        self.cluster.edit(self.key, change)
