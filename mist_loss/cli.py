"""The command line: ``mist-loss COMMAND``. A command lives beside what it runs and is imported when called."""

import argparse
import importlib
import sys
from importlib.metadata import version

# command -> (module with add_arguments and main, help)
COMMANDS = {
    "estimate": ("mist_loss.commands.estimate", "estimate the mutual information between columns of a file"),
    "models": ("mist_loss.commands.models", "list the weights that come with the package"),
    "info": ("mist_loss.commands.info", "say what a weight file is: sizes, trained range, origin, hash"),
    "pretrain": ("mist_loss.training.pretrain", "train an estimator on a meta-distribution; resumes where it stopped"),
    "look": ("mist_loss.training.look", "fit the second look of weights alone; resumes"),
    "mean": ("mist_loss.training.mean", "average weights that were trained on from the same ones"),
    "adapt": ("mist_loss.flows.adapt", "adapt an estimator to the kind of rows that a file holds; resumes"),
    "bench": ("mist_loss.evaluation.bench", "measure estimators side by side on benchmark corpora; resumes"),
}


def parse(argv: list[str]) -> argparse.Namespace:
    """Import the module of the command and parse its arguments; ``run`` of the result is what to call with it."""
    parser = argparse.ArgumentParser(prog="mist-loss", description="Mutual information as a PyTorch loss.")
    parser.add_argument("--version", action="version", version=f"mist-loss {version('mist-loss')}")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (module_name, summary) in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary)
        if name in argv[:1]:
            module = importlib.import_module(module_name)
            module.add_arguments(command)
            command.set_defaults(run=module.main)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Parse the command and run it."""
    args = parse(sys.argv[1:] if argv is None else argv)
    try:
        return args.run(args)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        print(f"mist-loss {args.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"mist-loss {args.command}: interrupted; what was saved is kept", file=sys.stderr)
        return 130  # 128 and the number of the signal, as shells have it


if __name__ == "__main__":
    raise SystemExit(main())
