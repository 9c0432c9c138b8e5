"""DKIM and ARC: the plugins `dkim`, `dkim-sign`, `arc` and `arc-seal`.

`taglist`, `canonical`, `fields`, `body`, `keys`, `signature` and `check` are the ground they share; `chain` and
`results` are ARC's own. dkimpy gives what RSA needs; docs/decisions/0005-dkim.md says why not more of it.
"""
