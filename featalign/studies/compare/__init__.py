"""`compare`: in which basis do networks agree, and what does each way of fusing them cost?"""
