"""The command `bouton`. What is heavy is imported when its command runs."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import bouton

if TYPE_CHECKING:
    from bouton.lab.summary import Summary

LAB_PACKAGES = {
    "filelock", "jinja2", "markupsafe", "mnist1d", "numpy", "plotly", "rich", "scipy", "sklearn",
    "snntorch", "tyro",
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        arguments: what was typed after `bouton`; None: as the shell gave it.

    Returns:
        The exit code: 0, or 1 if a run failed, 2 for what the user must put right (a mistake, a full disk),
        130 when interrupted.
    """
    typed = list(sys.argv[1:] if arguments is None else arguments)
    if typed == ["--version"]:
        print(f"bouton {bouton.__version__}")
        return 0
    try:
        return _dispatch(typed)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in LAB_PACKAGES:
            raise
        print(
            f"bouton: {error.name} is not installed. Type: pip install 'bouton[lab]'",
            file=sys.stderr,
        )
        return 2
    except (ValueError, OSError) as error:
        from bouton.lab.visible import visible

        print(f"bouton: {visible(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nbouton: stopped. The same command goes on where it was.", file=sys.stderr)
        return 130


def _dispatch(typed: list[str]) -> int:
    import tyro

    command = shlex.join(["bouton", *typed])
    # tyro reads each command's options and help from its function's signature and docstring.

    def demo(out: Path = Path("bouton-demo"), seeds: int = 5) -> int:
        """Train plain nets and each mechanism on MNIST-1D and say which helps (a minute).

        Args:
            out: folder of the runs and the page; what is there already is not made again.
            seeds: number of paired seeds.
        """
        from bouton.lab import experiments

        return _exit_code(experiments.carry_out(experiments.demo(seeds=seeds, command=command), out))

    def compare(
        data: str = "mnist1d",
        model: str = "mlp",
        mechanisms: tuple[str, ...] = (),
        samples: int | None = None,
        seeds: int = 5,
        epochs: int = 10,
        batch_size: int = 64,
        optimizer: str = "sgd",
        lr: float = 0.01,
        threads: int = 1,
        out: Path = Path("bouton-compare"),
    ) -> int:
        """Compare mechanisms on data and a model of your choice.

        Args:
            data: mnist1d, digits, fashion-mnist, sequential-fashion-mnist (rows as time steps),
                rate-coded-fashion-mnist (spikes), or file.py:make_data (a function that returns
                x_train, y_train, x_test, y_test).
            model: mlp, cnn, resnet9, rnn, lstm, transformer, snn (spiking), or file.py:make_model (a
                function that returns a torch.nn.Module).
            mechanisms: one or more, such as Grapes 'Grapes(mode="local")'
                'Grapes()+MultiSynapse(gamma=2)'; left out: every mechanism that can act on the
                model, and the others are named with the reason.
            samples: number of training samples, taken in a fixed order in which the classes are
                mixed; left out: all. The test split stays whole.
            seeds: number of paired seeds.
            epochs: how often the training split is seen.
            batch_size: samples per step.
            optimizer: sgd, momentum, adam, adamw, rmsprop or adagrad.
            lr: learning rate.
            threads: torch's threads; more than one is for large models on an idle machine.
            out: folder of the runs and the page; what is there already is not made again.
        """
        from bouton.lab import experiments

        comparison = experiments.define(
            data=data,
            model=model,
            mechanisms=mechanisms,
            samples=samples,
            seeds=seeds,
            epochs=epochs,
            batch_size=batch_size,
            optimizer=optimizer,
            lr=lr,
            command=command,
        )
        return _exit_code(experiments.carry_out(comparison, out, threads=threads))

    def bench(
        workload: str | None = None,
        model: str | None = None,
        data: str | None = None,
        mechanisms: tuple[str, ...] = (),
        optimizer: str | None = None,
        lr: float | None = None,
        batch_size: int | None = None,
        device: str = "cpu",
        dtype: str = "float32",
        threads: int = 1,
        seconds: float = 20.0,
        precision: float = 0.01,
        out: Path | None = None,
    ) -> int:
        """Measure what mechanisms cost: step time against a plain step beside it, and memory.

        Args:
            workload: mlp, resnet18, transformer or gpt2 (for GPUs); left out: mlp, if no model is given.
            model: instead, a model of your own, file.py:make_model, as compare takes it.
            data: its data, file.py:make_data; one batch of it is taken.
            mechanisms: one or more, as compare takes them; left out: all, each alone, and the
                core together.
            optimizer: sgd, momentum, adam, adamw, rmsprop or adagrad; left out: the workload's, or sgd.
            lr: learning rate; left out: the workload's, or 0.01.
            batch_size: samples per step; left out: the workload's, or 64.
            device: cpu or cuda.
            dtype: of weights and inputs, float32 or bfloat16.
            threads: torch's threads.
            seconds: the most for each measurement.
            precision: the width of the interval at which a measurement stops before that.
            out: a file for the result, as JSON.
        """
        from bouton.lab.bench import benchmark

        benchmark(
            workload=workload,
            model=model,
            data=data,
            mechanisms=mechanisms,
            optimizer=optimizer and optimizer.lower(),
            lr=lr,
            batch_size=batch_size,
            device=device,
            dtype=dtype,
            threads=threads,
            seconds=seconds,
            precision=precision,
            out=out,
            command=command,
        )
        return 0

    def report(directory: Path, /) -> int:
        """Print the table and write the page of a sweep again, from its folder.

        Args:
            directory: the folder that demo or compare wrote.
        """
        from bouton.lab import experiments

        experiments.rebuild(directory)
        return 0

    def list_(coverage: bool = False) -> int:
        """List the mechanisms, data sets and models.

        Args:
            coverage: instead, print which mechanism reaches which layer type, and why it does not.
        """
        if coverage:
            from bouton.lab import coverage as table

            table.print_coverage(table.coverage())
            return 0
        from bouton.lab.listing import print_listing

        print_listing()
        return 0

    code: int = tyro.extras.subcommand_cli_from_dict(
        {"demo": demo, "compare": compare, "bench": bench, "list": list_, "report": report},
        prog="bouton",
        description="Synaptic mechanisms for PyTorch: do they help? (bouton --version)",
        args=typed,
    )
    return code


def _exit_code(summary: Summary) -> int:
    return 1 if any(arm.count("failed") for arm in summary.arms) else 0


if __name__ == "__main__":
    sys.exit(main())
