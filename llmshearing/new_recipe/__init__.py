"""From a model, a target and a budget of tokens to the two recipes that shear it and train it on."""
