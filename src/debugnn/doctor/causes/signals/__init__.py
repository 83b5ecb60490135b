"""What the evidence shows, as several causes ask for it: a module for each subject. Needs no torch.

A threshold stands beside the functions that compare with it; what a single cause uses stands in
that cause's file. All thresholds compare ratios or shares, never absolute sizes: the size of a
gradient changes with the batch, the width and the loss. "Sound" and "faulty" programs are those of
the half of `debugnn.faults` that thresholds were set on, with seed 0; how far each threshold can be
moved before a diagnosis of that half changes is measured by
`scripts/evaluate_doctor.py --sensitivity` and stands in the doctor's README.
"""
