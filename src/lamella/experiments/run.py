"""Runs a configuration: learn every task, test after each, and write everything to a run directory.

OUT/config.toml     resolved configuration        OUT/results*.json   one per readout (see results.py)
OUT/inputs.json     hashes: split, weights, file  OUT/.lock           held while a process runs
                    of an own method              OUT/log.jsonl       what happened when
OUT/model/          the learner after the last finished task, and the scores so far
OUT/checkpoints/    calls of the running task     OUT/right.npz       which test samples were right at the end

The loggers of `run.loggers` write beside these, see logging/loggers.py, and so does a run on answers, see answering.py.
"""

import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from lamella.backbones.feature_cache import FeatureCache
from lamella.common.files import half_written, read_json, refuse_links, write_atomic, write_json
from lamella.common.locks import exclusive_lock
from lamella.common.progress import bars, silent
from lamella.data.answers import AnswerSet
from lamella.data.keeping import keep_decoded
from lamella.data.scenario import Scenario, Task
from lamella.experiments.answering import AnswerRun, check_run_table
from lamella.experiments.claims import check_claim, removed_if_refused
from lamella.experiments.federated import federated_lines
from lamella.experiments.logging.events import Events
from lamella.experiments.metrics import METRICS
from lamella.experiments.online import OnlineRun
from lamella.experiments.phases import phases_line
from lamella.experiments.report.summary import settings
from lamella.experiments.results import build_results, curve_so_far, stored_row
from lamella.experiments.right import write_right
from lamella.federated.fit import FederatedFit
from lamella.learner.answers.scores import SCORES
from lamella.learner.config.document import (
    build_federation,
    build_scenario,
    readout_names,
    to_toml,
)
from lamella.learner.config.own_methods import method_digests, name_in_table
from lamella.learner.config.precision import as_in_runs, precision_line
from lamella.learner.learner import Learner
from lamella.learner.scores import Score
from lamella.learner.store.versions import VERSIONS, holds_model, load_manifest
from lamella.methods import WHOLE_STREAM
from lamella.training import processes
from lamella.training.checkpoints import Checkpoints
from lamella.training.compilation import check_compilable
from lamella.training.listening import listening
from lamella.training.precision import resolve_device

__all__ = ["run"]


def run(
    config: dict[str, Any],
    out: Path,
    *,
    resume: bool = False,
    quiet: bool = False,
    loop: Callable[..., FederatedFit] = FederatedFit,
) -> Path:
    """Run a configuration to its end.

    Args:
        config: the complete configuration, as `config.load_config` returns it.
        out: the run directory.
        resume: whether to continue a run that is there. A finished run is not changed.
        quiet: whether to hide progress.
        loop: makes the loop over the clients of [federated], where they are not in this process.

    Returns:
        The run directory.

    Raises:
        FileExistsError: `out` holds a run, and `resume` is False.
        ValueError: `out` holds a run of another configuration, or a file or folder of the run is a symbolic link.
    """
    model = out / "model"
    refuse_links(model, model / VERSIONS, out / "checkpoints", out / "log.jsonl")
    made = [folder for folder in (out, *out.parents) if not folder.exists()] if processes.leads() else []
    busy = f"another process is running in '{out}'; wait for it or choose another --out"
    with processes.held(lambda: exclusive_lock(out, busy)), removed_if_refused(made):
        processes.check_shared(out)
        config = {**config, "method": name_in_table(config["method"], Path.cwd())}
        processes.same("configuration", lambda: to_toml(config))
        config, finished = processes.from_first(lambda: _claimed(config, out, resume))
        if not finished:
            # Before the folder is claimed, so that a wrong setting can be corrected.
            job = _Run(config, out, quiet, loop)
            processes.from_first(lambda: write_atomic(out / "config.toml", to_toml(job.config).encode()))
            if "measured" in job.config["fit"] and not quiet:
                print(precision_line(job.config))
            try:
                job.finish()
            finally:
                job.events.close()
    return out


def _claimed(config: dict[str, Any], out: Path, resume: bool) -> tuple[dict[str, Any], bool]:
    """Return the configuration with the precision that was chosen in `out`, and whether its run is finished."""
    config = as_in_runs(config, [out])
    check_claim(out, config, resume)
    for torn in half_written(out):
        torn.unlink()
    return config, (out / "results.json").exists()


class _Run:
    """A run in progress."""

    def __init__(
        self, config: dict[str, Any], out: Path, quiet: bool, loop: Callable[..., FederatedFit] = FederatedFit
    ) -> None:
        self.out = out
        self.loop = loop
        self.quiet = quiet
        self.events = Events(out, config["run"].get("loggers", []), settings(config) | {"seed": config["run"]["seed"]})
        device = resolve_device(config["fit"]["device"])
        self.scenario: Scenario = build_scenario(config)
        self.whole = config["method"]["name"] in WHOLE_STREAM
        self.tasks = (
            [self.scenario.joined()[0]] if self.whole else [self.scenario[i] for i in range(len(self.scenario))]
        )
        model = out / "model"
        self.learner = Learner.load(model, device=config["fit"]["device"]) if holds_model(model) else Learner(config)
        # An older version of Lamella may have stored a selection that the overrides contradict.
        self.learner.config["run"] = config["run"]
        self.config = self.learner.config  # the learner may have measured and chosen a precision
        if self.config["fit"]["compile"]:
            check_compilable(self.learner.method, device)
        self.answers = None
        if isinstance(self.tasks[0].train, AnswerSet):
            self.answers = AnswerRun(out, self.learner, self.scenario, self._test, whole_stream=self.whole)
        streams = self.scenario.batch is not None and not self.whole
        self.online = OnlineRun(self.learner, self.scenario, self._test) if streams else None
        self.federation = build_federation(config)
        if self.federation is not None:
            self.federation.check_tasks(len(self.tasks))
        self.learner.model.fit(federation=self.federation)  # refuses a method that clients cannot learn by
        processes.same("split of the samples", lambda: self.scenario.split_sha256)
        processes.same("backbone", lambda: self.learner.backbone.weights_sha256)
        processes.from_first(self._check_inputs)
        self.learner.notes.setdefault("scores", [])
        self.tests: dict[int, Any] = {}
        check_run_table(self.config, self.tasks[0].train.noun)
        self.recalls: dict[int, FeatureCache] = defaultdict(FeatureCache)
        self.checkpoints = Checkpoints(out / "checkpoints", float(config["fit"]["checkpoint_seconds"]))
        self.progress = silent if quiet else bars

    def _check_inputs(self) -> None:
        """Refuse to go on with other samples or weights than the run was started with."""
        path = self.out / "inputs.json"
        inputs = {"images": self.scenario.split_sha256, "weights": self.learner.backbone.weights_sha256}
        inputs |= self.answers.inputs if self.answers else {}
        if not path.exists():
            files = method_digests(self.config)
            write_json(path, inputs | ({"method_files": files} if files else {}))
            return
        before = read_json(path)
        if changed := [what for what, digest in inputs.items() if before[what] != digest]:
            noun = self.tasks[0].train.noun
            names = {"images": f"{noun}s", "probe": "rows of run.probe"}
            told = " and ".join(names.get(what, what) for what in changed)
            raise ValueError(
                f"the {told} of '{self.out}' are not those it was started with ({noun}s added, removed or renamed, "
                "another weights file), so it cannot go on; put them back, or choose another --out"
            )

    def finish(self) -> None:
        self.events.tell("start", method=self.learner.name, tasks=len(self.tasks), done=len(self.learner.tasks))
        if self.answers and (took := self.answers.measure_before()) is not None and not self.quiet:
            print(f"measured before anything is learned ({took:.0f} s)")
        for i, task in enumerate(self.tasks):
            if i >= len(self.learner.tasks):
                with listening(self.events.epoch):
                    record = self.learner.learn(
                        task,
                        # The calls of a stream are as many as its batches; one that was killed begins its task again.
                        checkpoints=None if self.online else self.checkpoints,
                        progress=silent if self.online else self.progress,
                        federation=self.federation,
                        loop=self.loop,
                        stream=self.online.stream(i) if self.online else None,
                    )
                if self.online:
                    self.events.log({f"online/{key}": value for key, value in self.online.keep().items()}, i + 1)
                self._save()
                self.events.log({"seconds/learn": record.seconds["total"]}, i + 1)
                self.events.tell("learned", task=i, **record.to_json())
                # Only now: when a run is resumed, the checkpoints belong to the interrupted task.
                self.checkpoints.clear()
            if i >= len(self.learner.notes["scores"]):
                self._evaluate(i)
        self.checkpoints.clear()  # the process may have been killed after storing the last task and before clearing
        results = processes.from_first(self._write_results)
        if not self.quiet:
            counts = self.learner.parameter_counts()
            whole = counts.get("backbone")  # hashed words are made by code, which has no parameters
            shares = (f"{part} {n:,}" + (f" ({n / whole:.1%})" if whole else "") for part, n in counts.items())
            beside = ", beside the backbone's" if whole else ""
            print(f"parameters{beside}: {', '.join(shares)}")
            tested = sum(entry["seconds"] for entry in self.learner.notes["scores"])
            print(phases_line(self.learner.tasks, tested))
            for line in federated_lines(results[""]["federated"]) if self.federation is not None else ():
                print(line)
        final = results[""]
        self.events.tell("finished", final_accuracy=final["final_accuracy"])
        self.events.log({f"final/{metric.name}": final.get(metric.name) for metric in METRICS}, len(self.tasks))

    def _write_results(self) -> dict[str, Any]:
        """Write the result files, and return their content by suffix."""
        stored = load_manifest(self.out / "model")["state"]["bytes"]
        if self.answers:
            results = {"": self.answers.results(stored_bytes=stored)}
        else:
            results = build_results(self.learner, self.scenario, stored_bytes=stored, whole_stream=self.whole)
            results[""] |= self.online.results() if self.online else {}
        # The aligned readout is "results.json"; it is written last, because its presence means that all is done.
        for suffix, result in sorted(results.items(), reverse=True):
            name = f"results-{suffix.replace(':', '-')}.json" if suffix else "results.json"
            write_json(self.out / name, result)
        return results

    def _evaluate(self, i: int) -> None:
        """Score the model after task i on the learned tasks, or on all tasks if they share their classes."""
        if self.answers:
            self._evaluate_answers(self.answers, i)
            return
        started = time.monotonic()
        same = self.scenario.kind == "domain-incremental"
        last = len(self.scenario) if self.whole or same else i + 1
        right: list[dict[str, Tensor]] = [{} for _ in range(last)]
        row = [self._score(i, j, self.scenario.shared_classes, right[j]) for j in range(last)]
        given = self.scenario.kind == "task-incremental"
        if i == len(self.tasks) - 1 and processes.leads():
            counted = [{key: both[int(given)] for key, both in task.items()} for task in right]
            write_right(self.out, counted, readout_names(self.config))
        self.learner.notes["scores"].append({"row": stored_row(row), "seconds": time.monotonic() - started})
        self._save()
        accuracy = curve_so_far(row, last - 1 if self.whole else i, task_given=given)
        self.events.tell("tested", task=i, accuracy=accuracy)
        each = {f"accuracy/task-{j}": _accuracy(scores[""], given) for j, scores in enumerate(row)}
        self.events.log({"accuracy/all": accuracy} | each, i + 1)
        self._say_done(i, f"accuracy so far {100 * accuracy:.1f} %")

    def _evaluate_answers(self, answers: AnswerRun, i: int) -> None:
        """Score the model after task i on the learned tasks and on the next one."""
        started = time.monotonic()
        measured = answers.measure(i, last=i == len(self.tasks) - 1)
        self.learner.notes["scores"].append({**measured, "seconds": time.monotonic() - started})
        self._save()
        seen = measured["row"] if self.whole else measured["row"][: i + 1]
        means = {
            name: sum(own) / len(own)
            for name in SCORES
            if (own := [c["scores"].get(name) for c in seen]) and None not in own
        }
        self.events.tell("tested", task=i, accuracy=means.get("exact"), scores=means)
        each = {f"{name}/task-{j}": v for j, cell in enumerate(measured["row"]) for name, v in cell["scores"].items()}
        self.events.log({f"score/{name}": value for name, value in (means | each).items()}, i + 1)
        exact = f"exact match {100 * means['exact']:.1f} %, " if "exact" in means else ""
        self._say_done(i, f"so far {exact}loss {means['loss']:.3f}, the mean of the tasks")

    def _say_done(self, i: int, what: str) -> None:
        if not self.quiet:
            seconds = self.learner.tasks[i].seconds["total"]
            print(f"{self.learner.name}: {i + 1}/{len(self.tasks)} tasks, {what} ({seconds:.0f} s)")

    def _score(self, i: int, j: int, shared: bool, right: dict[str, Tensor]) -> dict[str, Score]:
        return self.learner.evaluate(
            self._test(j),
            self.scenario[j].classes,
            shared_classes=shared,
            recall=self.recalls[j],
            progress=self.progress,
            name=f"{i}, test on {j}",
            right=right,
        )

    def _test(self, j: int) -> Any:
        """The samples that task j is scored on, decoded once where they fit into memory."""
        if j not in self.tests:
            self.tests[j] = keep_decoded(self._scored_part(j), progress=self.progress)
        return self.tests[j]

    def _scored_part(self, j: int) -> Any:
        task: Task = self.scenario[j]
        if self.config["run"]["evaluate_on"] == "test":
            return self.scenario.test(j)
        if task.validation is None:
            raise ValueError(
                "run.evaluate_on is 'validation', but scenario.validation is 0; set it to a share such as 0.2"
            )
        return task.validation

    def _save(self) -> None:
        processes.from_first(lambda: self.learner.save(self.out / "model", keep=1))


def _accuracy(score: Score, task_given: bool) -> float:
    return score.task_aware_accuracy if task_given else score.accuracy
