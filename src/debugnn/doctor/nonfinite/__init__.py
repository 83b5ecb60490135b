"""The first non-finite number of a training: which operation made it, from which samples.

search              finds it in one step of the training, by way of forward and backward
origin              what the report says about it
values, overflow    non-finite values of a tensor; operations that leave a dtype's range
replay              the step that broke, kept, repeated on a copy and saved
"""
