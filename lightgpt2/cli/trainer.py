"""`lightgpt2 fit | validate | test | predict | check`: from the command line to Lightning."""

import contextlib
import logging
import re
import warnings
from collections.abc import Iterable, Iterator
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar

import lightning.pytorch as pl
from jsonargparse import ArgumentError, Namespace, add_instantiator, set_parsing_settings
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Checkpoint, ProgressBar, TQDMProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers.logger import DummyLogger

import lightgpt2
from lightgpt2.callbacks.artefact import Artefact
from lightgpt2.callbacks.base import RunCallback
from lightgpt2.callbacks.checkpointing import AtomicCheckpointIO, Checkpointing
from lightgpt2.callbacks.monitor import Monitor
from lightgpt2.callbacks.progress import Check, Checked, Closing, Header, Progress
from lightgpt2.callbacks.scores import PredictionWriter, ScorePrinter
from lightgpt2.cli import loggers, trainer_settings
from lightgpt2.cli.inference import quiet_transformers
from lightgpt2.cli.schema import TRUSTED
from lightgpt2.cli.trainer_settings import TRAINER_VERBS, LoggerName
from lightgpt2.errors import Problem, UserError, cut, refuse, tell
from lightgpt2.methods.callbacks import callback_problems
from lightgpt2.methods.method import Method
from lightgpt2.models import hub
from lightgpt2.runs.configs import load_config
from lightgpt2.runs.fits import make_missing, missing
from lightgpt2.runs.run import Run, check_folder, find_checkpoint, has_model, identity
from lightgpt2.runs.settings import flat

_TRAINER_DEFAULTS = {
    "use_distributed_sampler": False,  # the data module deals out windows itself
    "num_sanity_val_steps": 0,  # the models are scored before the first step
    "enable_autolog_hparams": False,  # hyper-parameters are logged once, with the final metrics
    "enable_model_summary": False,  # the table at the end has the sizes
}


class Trainer(pl.Trainer):
    """Lightning's trainer with one verb more: `check` builds everything and trains nothing."""

    checks = False  # whether that is the verb

    def check(
        self, model: pl.LightningModule, datamodule: pl.LightningDataModule, ckpt_path: str | None = None
    ) -> None:
        self.checks = True
        with contextlib.suppress(Checked):
            self.fit(model, datamodule=datamodule, ckpt_path=ckpt_path)


class LightGPT2CLI(LightningCLI):
    """Lightning's CLI with a run's folder, its standard callbacks, and messages for people."""

    verbs: ClassVar[Iterable[str]] = TRAINER_VERBS  # those that are parsed
    safe: ClassVar[bool] = False  # whether nothing may run that a configuration brings

    @classmethod
    def subcommands(cls) -> dict[str, set[str]]:
        """The verbs, and the arguments of their functions that are no options."""
        inside = {"model", "datamodule", "dataloaders", "train_dataloaders", "val_dataloaders", "weights_only"}
        return dict.fromkeys(cls.verbs, inside)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--run", type=str | None, help="Name of the run; default: the config's stem.")
        parser.add_argument("--logger", type=LoggerName | None, help="What shows the curves; default: tensorboard.")
        parser.add_argument(
            "--needs", type=dict[str, str], default={}, help="Model folders and the configs whose fit makes them."
        )
        parser.add_class_arguments(Checkpointing, "checkpoint")
        parser.link_arguments("seed_everything", "data.init_args.seed", _data_seed)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        try:
            self.config = parser.parse_args(args)
        except ArgumentError as error:  # what `checking` has let pass
            raise UserError(_problem(str(error.message))) from error

    def before_instantiate_classes(self) -> None:
        """Settles the run, its input and where it starts."""
        settings = self._settings
        settings.run = settings.run or (Path(str(settings.config[-1])).stem if settings.config else "run")
        self.place = Run(settings.run)
        _without_enums(settings.trainer)  # which no configuration can hold
        self._dump_config()
        self.resolved = {k: v for k, v in self.config_dump.items() if k not in ("config", "ckpt_path")}
        if self.safe:
            refuse(_unsafe(self.resolved))
        self.identity = identity(self.resolved)
        self._first_step = 0
        self._logger: LoggerName | None = None  # that is yet to be opened
        self._misplaced: list[str] = []
        try:
            self._find_start(settings)
        except UserError as error:
            self._misplaced = [*error.problems]

    def instantiate_classes(self) -> None:
        """Says in one line what a class of the configuration does not take, or lacks on this machine."""
        try:
            super().instantiate_classes()
        except (ImportError, TypeError, ValueError, MisconfigurationException) as error:
            raise UserError(_problem(str(error))) from error

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """Adds the logger, the checkpoint format and the standard callbacks to what the configuration asks for.

        Raises:
            UserError: Every mistake that shows before anything heavy is built.
        """
        training = self.subcommand in ("fit", "check")
        generating = self.subcommand == "predict" and self.model.task.predict != "scores"
        problems = [*self._misplaced, *trainer_settings.problems(self._settings, training, generating)]
        problems += loggers.problems(self._settings.logger, self._settings.trainer.logger)
        problems += self.datamodule.problems()
        if training and (most := self._settings.trainer.max_steps) > 0:  # of an epoch's the tokenized text decides
            problems += [p.under("model.optimizer") for p in self.model.optimizer_config.problems(most)]
        if not any(problem.startswith("trainer.") for problem in problems):  # else Lightning may say it once more
            try:
                made = self._make_trainer(**kwargs)
            except UserError as error:
                problems += error.problems
            except (ImportError, RuntimeError, TypeError, ValueError, MisconfigurationException) as error:
                problems.insert(0, f"trainer: {' '.join(str(error).split())}")
            else:
                processes = made.num_devices * made.num_nodes
                problems += trainer_settings.size_problems(self._settings.trainer.strategy, processes)
        self._check_models(problems)
        return made

    def before_fit(self) -> None:
        """Opens the logger when the configuration has no mistakes: what it begins is not taken back."""
        if self._logger:
            self.trainer.logger = loggers.open_logger(self._logger, self.place, self._first_step)

    def after_fit(self) -> None:
        """Ends what a further fit in this process would go on with."""
        loggers.close(self.trainer.logger)

    # -- inside ------------------------------------------------------------------------------------------------------

    @property
    def _settings(self) -> Namespace:
        return self.config[str(self.subcommand)]

    def _find_start(self, settings: Namespace) -> None:
        """Makes sure of the run's folder, and finds what it starts from."""
        if self.subcommand not in ("fit", "check"):
            if self.subcommand == "predict":
                check_folder(self.place, self.identity, resuming=True)
            self._choose_model(settings)
            return
        ckpt_path = settings.get("ckpt_path")
        check_folder(self.place, self.identity, resuming=self.subcommand == "check" or ckpt_path is not None)
        if ckpt_path is not None:
            settings.ckpt_path = self._find_checkpoint(str(ckpt_path))

    def _make_trainer(self, **kwargs: Any) -> pl.Trainer:
        trainer = self._get(self.config_init, "trainer")
        trainer.plugins = [*_listed(trainer.plugins), AtomicCheckpointIO()]
        trainer.default_root_dir = str(self.place.folder)
        logger = trainer.logger
        if self.subcommand != "fit":  # callbacks find what they have in a fit, and nothing is written
            logger = logger is not False and DummyLogger()
            trainer.enable_checkpointing = any(isinstance(each, Checkpoint) for each in _listed(trainer.callbacks))
        elif logger in (None, True):
            logger, self._logger = False, self._settings.logger or "tensorboard"
        callbacks = self._ordered(_listed(trainer.callbacks))
        made = super().instantiate_trainer(**kwargs, logger=logger, callbacks=callbacks)
        if (environment := getattr(made.strategy, "cluster_environment", None)) is not None:
            environment.validate_settings(made.num_devices, made.num_nodes)  # which Lightning does when the work begins
        return made

    def _ordered(self, extra: list[pl.Callback]) -> list[pl.Callback]:
        """The configuration's callbacks and the standard ones, in the order in which they work."""
        runs = [each for each in extra if isinstance(each, RunCallback)]
        problems = [p.under(f"trainer.callbacks.{type(c).__name__}") for c in runs for p in c.attach(self.place)]
        refuse([*problems, *callback_problems(extra, self.model.task)])
        late = sorted((each for each in runs if each.phase), key=lambda each: each.phase)
        early = [each for each in extra if each not in late]
        if self.subcommand == "check":  # which ends the fit when all others have looked
            return [Header(self.place), *early, *late, Check()]
        own = any(isinstance(each, ProgressBar) for each in extra)  # in the place of the usual one
        bar = self._settings.trainer.enable_progress_bar is not False and not own
        if self.subcommand != "fit":
            writer = PredictionWriter(self.place) if self.subcommand == "predict" else ScorePrinter()
            return [*early, *late, *([TQDMProgressBar(refresh_rate=10)] if bar else []), writer]
        checkpointing = self._get(self.config_init, "checkpoint")
        checkpointing.attach(self.place, self.identity)
        self.artefact = Artefact(self.place, self.resolved, resuming=self._settings.get("ckpt_path") is not None)
        standard = [Header(self.place), *early, Monitor(), self.artefact, checkpointing, *late]
        return [*standard, *([Progress()] if bar else []), Closing(self.place)]

    def _check_models(self, problems: list[str]) -> None:
        """Makes what the stage needs unless there are mistakes already: it may take hours. Then looks at the models."""
        model = self._settings.model
        if absent := missing(self._settings.needs, model.init_args.as_dict()):
            problems += [*_unmakeable(absent), *self.datamodule.unreadable()]
            if self.subcommand != "fit":
                makers = ", ".join(f"{path} (fit makes it with {config})" for path, config in absent.items())
                problems.append(f"needs: not there yet: {makers}")
            refuse(problems)
            make_missing(absent)
        training = self.subcommand in ("fit", "check")
        refuse([*problems, *self.model.problems(self.datamodule, training)])
        refuse(self.model.lacks(self.datamodule, training and self._settings.trainer.max_steps != 0, self.place.folder))

    def _parse_ckpt_path(self) -> None:
        """Nothing: Lightning would load the file unchecked and let it override the command line."""

    def _find_checkpoint(self, wanted: str) -> str | None:
        path, step, notes = find_checkpoint(self.place, wanted, self.identity)
        for note in notes:
            tell(note)
        self._first_step = step
        return str(path) if path else None

    def _choose_model(self, settings: Namespace) -> None:
        """What a scoring verb works on: a checkpoint, a model folder, the run's artefact, or the model of the config."""
        wanted, settings.ckpt_path = settings.get("ckpt_path"), None
        if wanted is None:
            if not has_model(self.place, self.identity):
                tell("Model: the configuration's own, not trained by this run")
                return
            wanted = self.place.model
        elif not Path(wanted).is_dir():
            settings.ckpt_path = self._find_checkpoint(str(wanted))
            if settings.ckpt_path is None:
                raise UserError(f"--ckpt_path: there is no {wanted} checkpoint to score; run fit first")
            return
        tell(f"Model: {wanted}")
        asked = vars(settings.model.init_args)
        kept = {key: asked[key] for key in ("task", "optimizer", "compile", "trust_remote_code")}
        arguments = Namespace(model=str(wanted), **kept)
        settings.model = Namespace(class_path="lightgpt2.methods.FineTune", init_args=arguments)


def _unmakeable(absent: dict[str, str]) -> Iterator[Problem]:
    """What is wrong with the configurations of models that are yet to be made."""
    for path, config in absent.items():
        try:
            load_config(config, f"needs.{path}")
        except UserError as error:
            yield from error.problems


def _made(kind: type, *args: Any, **kwargs: Any) -> Any:
    """Makes a callback of the configuration; says which one does not take its settings, or lacks a package."""
    try:
        return kind(*args, **kwargs)
    except (ImportError, TypeError, ValueError, MisconfigurationException) as error:
        raise UserError([Problem(f"trainer.callbacks.{kind.__name__}", " ".join(str(error).split()))]) from error


def _data_seed(seed: bool | int) -> int:
    """The seed of the training order: the run's own; 0 where Lightning chooses that, after this."""
    return 0 if isinstance(seed, bool) else seed


def _without_enums(settings: Namespace) -> None:
    """Puts plain text in the place of each enumeration of texts, in all groups of settings."""
    for key, value in vars(settings).items():
        if isinstance(value, Enum) and isinstance(value, str):
            settings[key] = value.value
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, Namespace):
                _without_enums(each)


def _listed(value: Any) -> list[Any]:
    """The values of a trainer's setting that takes one, several or none."""
    return value if isinstance(value, list) else [value] if value else []


def _quiet() -> None:
    """Silence advice from libraries that does not apply here."""
    quiet_transformers()
    hub.try_once()
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("datasets").setLevel(logging.CRITICAL)  # it logs what it then raises
    for said in (
        "does not have many workers",  # a batch is a slice of a memory-mapped file: worker processes would only cost
        "callbacks used to create the checkpoint",  # it is scored without the callbacks that trained it
        "is smaller than the logging interval",  # the monitor logs every step, whatever that interval is
        "is_gradient_checkpointing",  # raised inside PEFT by a rename in transformers
        r"isinstance\(treespec, LeafSpec\)",  # raised inside Lightning by a rename in torch
    ):
        warnings.filterwarnings("ignore", message=f".*{said}.*")


# What the lines of the full parser's messages begin with that give no reason.
_HEADINGS = (
    "Parser key", "Key", "Problem", "Does not validate", "Subtypes", "Errors", "Given value", "Not a valid subclass",
    "Subclass types", "a class path", "a dict", "Expected a <class",
)  # fmt: skip


_UNSAFE = "read that code, and check without --safe"


def _problem(message: str) -> Problem:
    """What the full parser says of the one mistake at which it has stopped.

    Its message is an indented tree: keys, then for each type of a union why the value does not fit. The first reason counts.
    """
    unknown = re.findall(r"(?:[Oo]ption '|[Uu]nrecognized arguments: --)([^\s'=]+)", message)[:1]
    keys = [*re.findall(r'(?:Parser key|Key) "([^"]+)"', message), *unknown]
    key = re.sub(r"\b(init_args|fit|validate|test|predict|check)\.", "", ".".join(dict.fromkeys(keys)))
    if unknown:
        return Problem(key, "no such key", "see lightgpt2 fit --help")
    if required := re.search(r"arguments are required: (\S+)", message):
        return Problem(f"{key}.{required[1]}".lstrip("."), "required, but not given")
    if denied := re.search(r"Importing '([^']+)' is not allowed", message):
        return Problem(key, f"{denied[1]} is code of another package than {', '.join(TRUSTED)}", _UNSAFE)
    lines = [line.strip(" -") for line in message.splitlines()]
    reason = next((line for line in lines if line and not line.startswith(_HEADINGS)), "names no class of this kind")
    return Problem(key, cut(reason, 300))


def _unsafe(config: dict[str, Any]) -> list[Problem]:
    """What a configuration has run beside the classes that it names."""
    found = flat(config, lists=True)
    source, trusted = str(found.get("data.source")), [key for key in found if key.endswith("trust_remote_code")]
    problems = [Problem(key, "lets code in the model's folder run", _UNSAFE) for key in trusted if found[key]]
    return problems + [Problem("data.source", f"{source} is a function", _UNSAFE)] * source.startswith("python:")


def launch(cli: type[LightGPT2CLI], args: list[str], safe: bool = False) -> LightGPT2CLI:
    """Runs a verb of the trainer; raises `UserError` where there are mistakes in its command line.

    With `safe`, only classes of this package, Lightning and torch are imported, from here to the end of the process.
    """
    _quiet()
    set_parsing_settings(add_print_completion_argument=True)
    add_instantiator(_made, pl.Callback)
    cli.safe = safe
    if safe:
        only: dict[str, Any] = {"import_path_denylist": ["*"], "import_path_allowlist": [*TRUSTED]}
        set_parsing_settings(instantiate_subclass_spec_in_any=False, **only)
    raising: dict[str, Any] = {"exit_on_error": False}
    # Half of the parser's time would go into the verbs that are not asked for.
    cli.verbs = args[:1] if args[0] in TRAINER_VERBS else TRAINER_VERBS
    try:
        return cli(
            Method,
            pl.LightningDataModule,
            save_config_callback=None,
            trainer_class=Trainer,
            trainer_defaults=_TRAINER_DEFAULTS,
            seed_everything_default=1,
            parser_kwargs=raising
            | {"description": lightgpt2.__doc__}
            | {verb: raising | {"description": TRAINER_VERBS[verb]} for verb in cli.verbs},
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            args=args,
        )
    except MisconfigurationException as error:
        raise UserError(Problem("trainer", " ".join(str(error).split()))) from error
