"""An OpenAI-compatible server for one TSM model.

| file            | what it is                                                            |
| --------------- | --------------------------------------------------------------------- |
| command.py      | the command: arguments, secrets, signals, exit codes                  |
| settings.py     | limits and names                                                      |
| app.py          | the routes and what answers them                                      |
| messages.py     | requests and answers: what is checked and documented                  |
| openapi.py      | /openapi.json, from messages.py                                       |
| guard.py        | who may ask: Host, Origin, key; bodies that are too large or too slow |
| protocol.py     | HTTP on a socket: slow heads, slow readers, too many connections      |
| scheduler.py    | who computes when                                                     |
| completion.py   | what is computed for one request                                      |
| reply.py        | what is computed as JSON, or as a stream of events                    |
| sealed.py       | states and cache entries that only this server's key can make         |
| prompt_cache.py | states after prompts, in memory and in Redis                          |
| metrics.py      | what /metrics tells                                                   |
"""
