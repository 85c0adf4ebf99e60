#!/bin/bash
# Learning rates by seed 0, then four more seeds of the best of each network and width. What was killed goes on where it was.
export OMP_NUM_THREADS=1
study() { python train.py experiment=bitnet_gap -m hydra.sweeper.workers=2 tracker=jsonl hydra.sweeper.study_name="$@" < /dev/null; }
study lr seed=0
study lr_low seed=0 model.dim=256 lr=1.25e-3
python experiments/bitnet_gap/figure.py --best outputs/bitnet_gap/lr* | while read -r model dim lr; do
  study "best_${model}_$dim" "model=$model" "model.dim=$dim" "lr=$lr" seed=1,2,3,4
done
