"""python train.py model=bitnet optim=grokfast -m lr=1e-3,3e-4     (python train.py --help tells the rest)"""

import sys

from research.preflight.check import check
from research.preflight.errors import explain_errors

if __name__ == "__main__":
    sys.argv = check(sys.argv)  # before anything heavy is imported

import hydra
from omegaconf import DictConfig


@hydra.main(config_path="conf", config_name="config", version_base="1.3")
def main(cfg: DictConfig) -> float:
    from research.run import run  # torch comes with it

    return run(cfg)


if __name__ == "__main__":
    with explain_errors():
        main()
