"""The doctor in trainers of other libraries: a callback for each.

from debugnn.integrations.lightning import DoctorCallback     # pip install debugnn[lightning]
from debugnn.integrations.transformers import DoctorCallback  # pip install debugnn[transformers]
"""
