"""Compare methods of what is trained, in what batches and in how many bits.

Each trial prints its contenders, mean and deviation over the seeds. `--trial`
chooses (may be repeated); by default all run. They are small: the 8 x 8 digits
of scikit-learn, a transformer on Python's help texts, and networks of
`keras.applications` without their weights.
"""

import time

import numpy as np

from benchmarks import training_trials

TRIALS = training_trials.TRIALS


def add_arguments(parser):
    parser.add_argument("--trial", action="append", choices=sorted(TRIALS))
    parser.add_argument("--seeds", type=int, default=5)


def main(options):
    for name in options.trial or TRIALS:
        start = time.perf_counter()
        rows = [TRIALS[name](seed) for seed in range(options.seeds)]
        seconds = time.perf_counter() - start
        about = TRIALS[name].__doc__.partition("\n")[0]
        print(f"\n{name}, {seconds:.0f} s: {about}")
        for contender in rows[0]:
            values = [row[contender] for row in rows]
            mean, deviation = np.mean(values), np.std(values)
            print(
                f"  {contender:<40} {mean:10.4f} +- {deviation:.4f}", flush=True
            )
    return 0
