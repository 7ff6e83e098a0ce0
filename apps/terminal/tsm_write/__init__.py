"""A writing pad for the terminal that completes as you write.

| file       | what it is                                          |
| ---------- | --------------------------------------------------- |
| command.py | the command tsm-write                               |
| pad.py     | the screen: a text, its ghost text, keys            |
| session.py | a text's file, and where one was in it              |
| learn.py   | a model of one's own notes                          |
"""
