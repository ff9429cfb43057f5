"""The command that asks lm-evaluation-harness about a model: `evaluate`."""

from pathlib import Path

from jsonargparse.typing import NonNegativeInt, PositiveInt

from lightgpt2.cli.inference import load_quietly, quiet_transformers, unwritable
from lightgpt2.errors import Interrupted, Problem, UserError, refuse


def evaluate(
    model: str,
    *,
    tasks: str,
    limit: PositiveInt | None = None,
    fewshot: NonNegativeInt | None = None,
    batch: PositiveInt = 8,
    seed: NonNegativeInt = 0,
    output: str = "evaluation.json",
    threads: PositiveInt | None = None,
    verify: bool = False,
    trust_remote_code: bool = False,
) -> None:
    """Evaluate a language model on tasks of lm-evaluation-harness, with standard errors.

    It needs lm_eval: pip install 'lightgpt2[eval]'. A task file may name Python functions, which are run.

    Args:
        model: An exported folder, a model folder, a GGUF file or a hub model.
        tasks: Names of lm_eval's tasks, groups and tags, and paths of task files (YAML), with commas between them.
        limit: The first examples of each task alone (default: all).
        fewshot: Examples with answers before each question (default: as many as the task says).
        batch: Number of texts that are computed together.
        seed: Seed of the choice of these examples, and of texts that are sampled.
        output: File for the figures.
        threads: Threads to compute with (default: all cores).
        verify: Compare every file of the model's folder with its checksum first. (Exported folders always are.)
        trust_remote_code: Let code in the model's folder run.
    """
    try:
        from lightgpt2.measure.harness import EngineLM, Tasks
    except ModuleNotFoundError as error:
        what = f"the package {str(error.name).partition('.')[0]} is not installed"
        raise UserError([Problem("evaluate", what, "install the extra: pip install 'lightgpt2[eval]'")]) from None
    from lightgpt2.models.files import write_json
    from lightgpt2.models.tokenizers import load_tokenizer
    from lightgpt2.report.table import evaluation_table
    from lightgpt2.runtime.language_model import LanguageModel

    path, names = Path(output), [name for each in tasks.split(",") if (name := each.strip())]
    problems = unwritable("--output", path, path.parent)
    if not names:
        problems.append(
            Problem("--tasks", "must name at least one task", "give names or files, with commas between them")
        )
    refuse(problems)
    quiet_transformers()
    try:
        loaded = load_quietly(model, threads, verify=verify, trust_remote_code=trust_remote_code)
        if not isinstance(loaded, LanguageModel):
            what = f"{model} does not continue texts"
            raise UserError([Problem("MODEL", what, "give a language model; validate and test score all other kinds")])
        tokenizer = load_tokenizer(model, "MODEL", trust_remote_code)
        result = Tasks(names, seed).evaluate(EngineLM(loaded, tokenizer, batch, seed), limit, fewshot)
    except KeyboardInterrupt:
        raise Interrupted(f"stopped; {output} was not written") from None
    settings = {"model": model, "tasks": names, "limit": limit, "fewshot": fewshot, "batch": batch, "seed": seed}
    write_json(path, {"settings": settings, **result})
    print(f"{evaluation_table(result)}\n\nfigures: {output}", flush=True)
