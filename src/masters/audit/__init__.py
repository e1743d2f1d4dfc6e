"""A person looks at a sample of the judged responses: do judge, rule and person agree?"""
