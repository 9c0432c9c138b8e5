"""What is inside a message: its MIME parts, its attachments, the hosts and numbers that it names, and how to change it.

`parser` reads the tree of parts, with `fields` for what a part says of itself, `decoding` for transfer encodings and
`body` for what a part holds. `reading` does it for a message, and gives the decoded octets of parts in a second pass;
`mime` is the plugin.

`examine` looks at files and into archives, with `kinds` for what a content is, `names` for what a file name means,
`zipfiles`, `streams` and `office` for the formats; `attachments` is the plugin.

`uris` finds hosts in texts, `hosts` reads them as browsers do, `urilists` is what the operator writes about lists and
what their answers weigh; `uribl` is the plugin.

`pattern` and `table` read Postfix's tables, `scan` reads a body as Postfix does, `inspection` does what the tables say;
`checks` is the plugin. `dlp` looks for kinds of data with `detectors`, and `markup` for what HTML shows. `disclaimer`
adds a text: `placing` says where, `insertion` how, and `patched` is the body that comes of it.
"""
