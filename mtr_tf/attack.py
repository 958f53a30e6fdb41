# SPDX-License-Identifier: Apache-2.0
"""Attacks a trained model, prints a table, and keeps the results with the model.

Example:
  python -m mtr_tf.attack --ckpt=runs/NAME --attack=pgd,fgsm --eps=2,8
  python -m mtr_tf.attack --ckpt=my.keras --dataset=camvid --data_dir=DIR --tasks=seg

All combinations of --attack, --attack_loss, --balance, --eps and --attack_tasks are
run. Results go to RUN/attacks/NAME, or with --out=DIR to DIR: results.json,
results.csv, curves.png, gallery.png, and TensorBoard's files. Finished combinations are
kept there, so the same command does none of them twice. --measure adds quantities of
the theory, such as gradient norms of groups of tasks.
"""

from __future__ import annotations

from mtr_tf.cli import flags as cli_flags
from mtr_tf.cli import startup
from mtr_tf.config.attack import AttackConfig


def main(config: AttackConfig) -> None:
    """Attacks; raises `InputError` for mistakes that the user can fix."""
    startup.import_tensorflow(config.deterministic)
    from mtr_tf import attack_job

    text = attack_job.attack(config)
    if text:
        print(text)


def run() -> None:
    """The console entry point `mtr-attack`."""
    cli_flags.run(
        "mtr_tf.attack",
        __doc__,
        (AttackConfig,),
        main,
        "Finished combinations are kept; the same command continues with the others.",
    )


if __name__ == "__main__":
    run()
