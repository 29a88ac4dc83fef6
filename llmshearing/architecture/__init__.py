"""What a model is made of: the one table that shapes, masks, shearing, rotation and dry runs read.

``axes`` names what rows and columns belong to, ``modules`` says what one module is, ``layouts`` lists the modules of a
decoder layer, ``families`` the families that have such layers, ``shapes`` and ``config`` what follows from both. A new
family is an entry in ``families``, and a layout if its layers have other modules than those before.
"""
