#!/bin/bash
# The quick size: digits, one block, three rates, two seeds. What was killed goes on where it was.
export OMP_NUM_THREADS=1
python="${PYTHON:-python}"
"$python" train.py experiment=bitnet_gap_digits -m model.dim=32,64,128 model.depth=1 lr=3e-3,1e-2,3e-2 seed=0,1 steps=500 \
  tracker=jsonl out=outputs/studies/quick hydra.sweeper.study_name=quick hydra.sweeper.workers=2 hydra.sweeper.plots=false < /dev/null &&
"$python" experiments/bitnet_gap/figure.py --quick outputs/studies/quick/bitnet_gap_digits/quick
