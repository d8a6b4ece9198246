"""The tasks that come along, one file each; what they guess from outputs and targets excludes one another."""

from featalign.data.tasks.classification import Classification
from featalign.data.tasks.multi_label import MultiLabel
from featalign.data.tasks.next_token import NextToken
from featalign.data.tasks.regression import Regression

__all__ = ["Classification", "MultiLabel", "NextToken", "Regression"]
