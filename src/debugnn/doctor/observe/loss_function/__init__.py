"""What a loss function rewards, tried out on outputs that are made up.

facts                         puts the questions, and answers with `LossFacts`
made_up                       the loss function on made-up outputs
across_samples                mean or sum; whether samples are compared with each other
graph                         what a loss was computed from, as its graph tells
dependence                    targets and further outputs that it depends on
policy                        actions whose probabilities are weighted by a number
regression, binary, classes   outputs that are right for a task, and others
"""
