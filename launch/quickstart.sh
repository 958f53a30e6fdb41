#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Trains segmentation alone, segmentation with an auxiliary task, and three tasks on rooms
# (made on your machine), attacks each model, and prints the results. Takes about 5 minutes
# on 2 cores, after the download. If it is stopped, start it again to continue.
. "$(dirname "$0")/environment.sh"
use_environment

for model in seg seg_autoencoder three; do
  checks=--nochecks # The attack is checked on one model only, to save time.
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
