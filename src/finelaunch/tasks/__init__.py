"""The tasks. To add one: a file with its section and class, and one line in each of the two unions here."""

from finelaunch.tasks.base import Task
from finelaunch.tasks.causal_lm import CausalLM, CausalLMSection
from finelaunch.tasks.multi_label import MultiLabelClassification
from finelaunch.tasks.question_answering import QuestionAnswering, QuestionAnsweringSection
from finelaunch.tasks.text_classification import TextClassification, TextClassificationSection

TaskSection = QuestionAnsweringSection | TextClassificationSection | CausalLMSection

_TASKS = {
    QuestionAnsweringSection: QuestionAnswering,
    TextClassificationSection: TextClassification,
    CausalLMSection: CausalLM,
}


def task_for(section: TaskSection) -> Task:
    """Return the task that ``section`` names."""
    if isinstance(section, TextClassificationSection) and section.multi_label:
        return MultiLabelClassification(section)
    return _TASKS[type(section)](section)
