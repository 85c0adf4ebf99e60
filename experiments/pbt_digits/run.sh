#!/bin/bash
# Both searches, twice five seeds: 7 minutes of processor time. What was killed goes on where it was.
export OMP_NUM_THREADS=1
STUDY="name=pbt_digits data=digits data._target_=experiments.pbt_digits.data.searched data.train_fraction=0.4 model=bitmlp
  model.dim=64 monitor=val/loss steps=500 tracker=none ~callbacks.curve lr=tag(log,interval(1e-4,1e-1))
  optim.weight_decay=tag(log,interval(1e-2,10)) optim.lamb=interval(0,5)"
for schedule in cosine constant; do
  for seed in 0 1 2 3 4; do
    python train.py -m hydra/sweeper=pbt $STUDY schedule=$schedule seed=$seed hydra.sweeper.seed=$seed \
      hydra.sweeper.population=8 hydra.sweeper.interval=50 hydra.sweeper.study_name=pbt_${schedule}_$seed
    python train.py -m hydra/sweeper/sampler=random $STUDY schedule=$schedule seed=$seed hydra.sweeper.sampler.seed=$seed \
      hydra.sweeper.n_trials=8 hydra.sweeper.study_name=random_${schedule}_$seed
  done
done
