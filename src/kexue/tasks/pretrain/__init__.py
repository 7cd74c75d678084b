"""Language models from plain texts: any sequence layer of kexue under one budget.

from kexue.tasks.pretrain import PretrainSettings, run_pretraining
run_pretraining("mini", PretrainSettings(layers=("gau", "flash")), Path("runs/lm"))
"""

from kexue.tasks.pretrain.run import run_pretraining
from kexue.tasks.pretrain.settings import LayerResult, PretrainSettings
from kexue.tasks.pretrain.texts import Texts

__all__ = ["LayerResult", "PretrainSettings", "Texts", "run_pretraining"]
