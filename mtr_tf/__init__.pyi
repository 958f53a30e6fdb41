# SPDX-License-Identifier: Apache-2.0
from mtr_tf import attacks as attacks
from mtr_tf import data as data
from mtr_tf import models as models
from mtr_tf import tasks as tasks
from mtr_tf.api.adversarial import AdversarialModel as AdversarialModel
from mtr_tf.api.callback import RobustnessCallback as RobustnessCallback
from mtr_tf.api.commands import compare_runs as compare_runs
from mtr_tf.api.commands import convert_weights as convert_weights
from mtr_tf.api.commands import reproduce_study as reproduce_study
from mtr_tf.api.commands import train_model as train_model
from mtr_tf.api.evaluate import evaluate as evaluate
from mtr_tf.api.results import Results as Results
from mtr_tf.errors import InputError as InputError
from mtr_tf.tasks import Task as Task
from mtr_tf.tasks import TaskSet as TaskSet

__version__: str
