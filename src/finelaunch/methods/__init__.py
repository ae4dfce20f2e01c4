"""Ways to fine-tune. To add one: a file with its section and class, and one line in each of the two unions here."""

from finelaunch.methods.base import Method
from finelaunch.methods.full import Full, FullSection

MethodSection = FullSection


def method_for(section: MethodSection) -> Method:
    """Return the method that ``section`` names."""
    return {FullSection: Full}[type(section)](section)
