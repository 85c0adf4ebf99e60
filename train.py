"""python train.py model=bitnet optim=grokfast -m lr=1e-3,3e-4     (python train.py --help lists the options)"""

import gc
import sys

from research.preflight import program

if __name__ == "__main__":
    gc.disable()  # nothing that is imported is garbage, and looking for some takes a second
    sys.argv = program.prepare(sys.argv)  # before anything heavy is imported

import hydra
from omegaconf import DictConfig


@hydra.main(config_path="conf", config_name="config", version_base="1.3")
def main(cfg: DictConfig) -> float:
    from research.run import run  # torch comes with it

    return run(cfg)  # which enables gc, now that everything is imported


if __name__ == "__main__":
    program.explain_errors()(main)()
