"""HTML and Markdown pages: the templates and the code that renders them."""
