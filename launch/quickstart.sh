#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Trains segmentation alone, with an auxiliary task, and three tasks on rooms (made on the
# spot), attacks each, and prints what came out. About 5 minutes on 2 cores, after the
# downloads. Stopped at any moment, it goes on where it was when started again.
. "$(dirname "$0")/environment.sh"
use_environment

for model in seg seg_autoencoder three; do
  checks=--nochecks # Whether the attack can be trusted is checked once, to save time.
  [ "$model" != three ] || checks=--checks
  echo "== $model: train =="
  python -m mtr_tf.train --flagfile="flags/rooms_quick_$model.flags" \
    --workdir="runs/quick-$model"
  echo "== $model: attack =="
  python -m mtr_tf.attack --flagfile=flags/attack_quick.flags \
    --ckpt="runs/quick-$model" $checks
done

echo "== side by side =="
python -m mtr_tf.compare --runs=runs/quick-seg,runs/quick-seg_autoencoder,runs/quick-three \
  --name=quick --plot=runs/quick.png
echo
echo "watch it: . ${MTR_VENV:-.venv}/bin/activate && tensorboard --logdir=runs"
