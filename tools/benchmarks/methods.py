"""Compare training methods with what they are to improve, on the digits.

Each trial prints its contenders, mean and deviation over the seeds. `--trial`
chooses (may be repeated); by default all run. They are small: 8 x 8 digits of
scikit-learn, dense networks.
"""

import json

import numpy as np

from benchmarks import method_trials
from benchmarks import task_trials

TRIALS = {**method_trials.TRIALS, **task_trials.TRIALS}


def add_arguments(parser):
    parser.add_argument("--trial", action="append", choices=sorted(TRIALS))
    parser.add_argument("--seeds", type=int, default=5)


def main(options):
    for name in options.trial or TRIALS:
        rows = [TRIALS[name](seed) for seed in range(options.seeds)]
        print(f"\n{name}: {TRIALS[name].__doc__}", flush=True)
        for contender in rows[0]:
            values = [row[contender] for row in rows]
            mean, deviation = np.mean(values), np.std(values)
            print(f"  {contender:<40} {mean:9.4f} +- {deviation:.4f}")
            print(
                "    " + json.dumps([round(float(v), 4) for v in values]),
                flush=True,
            )
    return 0
