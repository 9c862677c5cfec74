"""Options that several commands share: each has one name, one help text and one default.

An alias such as :data:`.common.JsonOption` annotates a parameter of a command, whose signature has the default. A group
such as :class:`.model.RuntimeGroup` is one parameter of a command and several options of the command line
(:mod:`.groups`).
"""
