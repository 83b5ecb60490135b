"""The first non-finite number of a training: which operation made it, of which samples.

search              finds it in one step of the training, by way of forward and backward
origin              what is told of it
values, overflow    non-finite values of a tensor; operations that leave a dtype's range
replay              the step that broke, kept, repeated on a copy and saved
"""
