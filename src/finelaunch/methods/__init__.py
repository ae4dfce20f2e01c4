"""Ways to fine-tune. To add one: a file with its section and class, and one line in each of the two unions here."""

from finelaunch.methods.base import Method
from finelaunch.methods.feature_extraction import FeatureExtraction, FeatureExtractionSection
from finelaunch.methods.full import Full, FullSection
from finelaunch.methods.gradual_unfreezing import GradualUnfreezing, GradualUnfreezingSection
from finelaunch.methods.lora import LoraSection, LowRank
from finelaunch.methods.prompts import PrefixTuningSection, Prompts, PromptTuningSection
from finelaunch.methods.qlora import QLora, QLoraSection

MethodSection = (
    FullSection
    | FeatureExtractionSection
    | GradualUnfreezingSection
    | LoraSection
    | QLoraSection
    | PromptTuningSection
    | PrefixTuningSection
)

_METHODS = {
    FullSection: Full,
    FeatureExtractionSection: FeatureExtraction,
    GradualUnfreezingSection: GradualUnfreezing,
    LoraSection: LowRank,
    QLoraSection: QLora,
    PromptTuningSection: Prompts,
    PrefixTuningSection: Prompts,
}


def method_for(section: MethodSection) -> Method:
    """Return the method that ``section`` names."""
    return _METHODS[type(section)](section)
