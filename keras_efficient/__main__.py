"""`python -m keras_efficient`, and the command `keras-efficient`.

`KERAS_BACKEND` says which backend is loaded, as for any program with Keras.
"""

import argparse
import sys

from keras_efficient.cli.bench import bench
from keras_efficient.cli.doctor import doctor
from keras_efficient.cli.report import gib
from keras_efficient.cli.report import report
from keras_efficient.version import __version__

COMMANDS = {
    doctor: "show versions, devices, and the kernels that would serve them",
    report: "show where the memory of a saved model goes in training",
    bench: "measure what a reversible run saves and costs on this machine",
}
JSON = {
    doctor: "print versions, backend, devices and kernels as JSON",
    report: "print bytes by layer and by way to train, and the plan, as JSON",
    bench: "print bytes kept, state and seconds of each way as JSON",
}


def main(arguments=None):
    """Run a command.

    Returns:
        Exit status: 0, or 1 where the command has failed or its answer is no:
        not even one example fits the budget. (argparse ends the process with
        2 on arguments that it does not know.)
    """
    options = _parser().parse_args(arguments)
    try:
        return options.function(options)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        print(f"error: {str(error) or type(error).__name__}", file=sys.stderr)
        return 1


def _parser():
    parser = argparse.ArgumentParser("keras-efficient", description=__doc__)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    for function, help in COMMANDS.items():
        command = commands.add_parser(
            function.__name__, help=help, description=help
        )
        command.set_defaults(function=function)
        command.add_argument("--json", action="store_true", help=JSON[function])
    of_doctor = commands.choices["doctor"]
    of_doctor.add_argument(
        "--gpu",
        action="store_true",
        help="step on a GPU, and fail where there is none",
    )
    of_report = commands.choices["report"]
    of_report.add_argument("model", metavar="MODEL.keras")
    of_report.add_argument("--batch-size", type=_positive, default=32)
    of_report.add_argument(
        "--sequence-length", type=_positive, help="for sizes not in the model"
    )
    of_report.add_argument(
        "--shape",
        type=_shape,
        action="append",
        default=[],
        help="of an example, 224,224,3 say; once for each input",
    )
    of_report.add_argument("--budget", type=_gib, help="8GiB or 500MiB, say")
    of_report.add_argument(
        "--plan",
        action="store_true",
        help="print the lines to paste that make a step fit the budget",
    )
    of_report.add_argument(
        "--import",
        dest="modules",
        metavar="MODULE",
        action="append",
        default=[],
        help="import it first, for the classes of the model",
    )
    of_report.add_argument("--plot", metavar="FILE.png", help="draw bars")
    of_bench = commands.choices["bench"]
    of_bench.add_argument("--depth", type=_positive, default=16, help="blocks")
    of_bench.add_argument("--width", type=_positive, default=256)
    of_bench.add_argument("--batch-size", type=_positive, default=1024)
    of_bench.add_argument("--steps", type=_positive, default=10)
    return parser


def _positive(text):
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return number


def _gib(text):
    try:
        return gib(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _shape(text):
    return tuple(_positive(size) for size in text.split(","))


if __name__ == "__main__":
    sys.exit(main())
